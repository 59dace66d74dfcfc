"""Rates and areas under the ROC curve, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Rate:
    """A share of images with its 95% Wilson interval."""

    accuracy: float
    correct: float
    """Images right; a sum of shares where each image was judged several times."""
    count: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Area:
    """An area under the ROC curve with its 95% interval."""

    value: float
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


def roc_area(positives: Tensor, negatives: Tensor) -> Area:
    """P(a positive's score > a negative's), ties half: the area under the ROC curve; scores (P,) and (N,), no NaN.

    The 95% interval takes the standard error of Hanley & McNeil (1982, equations 1 and 2) and is cut to [0, 1]. That
    error is 0 where the two kinds do not overlap; there it is Wilson's interval over the smaller kind, which is wider.
    It takes all scores for independent, an attacked image's and those of the same image clean among them too.
    """
    count, others = len(positives), len(negatives)
    assert count and others
    ordered = negatives.double().sort().values
    scores = positives.double()
    below, up_to = (torch.searchsorted(ordered, scores, right=right).double() for right in (False, True))
    area = ((below + up_to) / 2).mean().item() / others
    both_above, both_below = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (count - 1) * (both_above - area**2) + (others - 1) * (both_below - area**2)
    half = Z95 * math.sqrt(max(0.0, variance) / (count * others))
    if area in (0, 1):
        return Area(area, wilson(area * min(count, others), min(count, others)))
    return Area(area, (max(0.0, area - half), min(1.0, area + half)))


def read_rate(values: Mapping[str, Any]) -> Rate:
    """A rate from JSON; what cannot be one raises ValueError, KeyError or TypeError."""
    low, high = values["interval"]
    if not 0 <= low <= values["accuracy"] <= high <= 1:
        raise ValueError(f"accuracy {values['accuracy']} with interval {values['interval']}")
    return Rate(values["accuracy"], values["correct"], values["count"], (low, high))


def read_area(values: Mapping[str, Any]) -> Area:
    """An area from JSON; what cannot be one raises ValueError, KeyError or TypeError."""
    low, high = values["interval"]
    if not 0 <= low <= values["value"] <= high <= 1:
        raise ValueError(f"area {values['value']} with interval {values['interval']}")
    return Area(values["value"], (low, high))
