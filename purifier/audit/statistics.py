"""Rates with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Rate:
    """A share of images with its 95% Wilson interval."""

    accuracy: float
    correct: float
    """Images right; a sum of shares where each image was judged several times."""
    count: int
    interval: tuple[float, float]


def rate(correct: float, count: int) -> Rate:
    """The rate of ``correct`` of ``count`` images, count at least 1."""
    return Rate(correct / count, correct, count, wilson(correct, count))


def wilson(correct: float, count: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927; Brown, Cai & DasGupta 2001, equation 4), in [0, 1].

    Where each image was judged several times and ``correct`` is a sum of shares, the interval over images is
    wider than need be, never narrower.
    """
    assert 0 <= correct <= count and count > 0
    share = correct / count
    spread = Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return (
        0.0 if correct == 0 else max(0.0, middle - half),
        1.0 if correct == count else min(1.0, middle + half),
    )
