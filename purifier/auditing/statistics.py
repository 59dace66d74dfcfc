"""Shares of images and areas under the ROC curve, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

RESAMPLES, ENOUGH_SCORES = 500, 20
"""Number of bootstrap draws, and the smallest number of positives that the bootstrap is used for."""
Z95 = NormalDist().inv_cdf(0.975)
HALVINGS = 60
"""A bound is found by halving [-1, 1] this often: to below what a float64 can tell apart."""


@dataclass(frozen=True)
class Rate:
    """A share of images with its 95% Wilson interval."""

    share: float
    correct: float
    """Number of images right; a sum of shares if each image was judged several times."""
    count: int
    interval: tuple[float, float]

    def __str__(self) -> str:
        """``93.3% [84.1, 97.4]``."""
        low, high = self.interval
        return f"{self.share:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True)
class Area:
    """An area under the ROC curve with its 95% interval."""

    value: float
    interval: tuple[float, float]


def rate(correct: float, count: int) -> Rate:
    """The rate of ``correct`` out of ``count`` images; ``count`` is at least 1."""
    return Rate(correct / count, correct, count, wilson(correct, count))


def wilson(correct: float, count: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927; Brown, Cai & DasGupta 2001, equation 4), in [0, 1].

    If each image was judged several times and ``correct`` is a sum of shares, the interval over images is wider than
    necessary, never narrower.
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


@dataclass(frozen=True)
class PairedDifference:
    """By how much a share of images grew, on the same images, with its one-sided 95% lower bound."""

    value: float
    """New share minus old share, in [-1, 1]."""
    lower: float
    """With 95% confidence the difference is at least this; in [-1, 1]."""
    gained: float
    """Number of images right now and not before; a sum of shares if each image was judged several times."""
    lost: float
    """Number of images right before and not now."""
    count: int


def exact_mcnemar(lost: int, gained: int) -> float:
    """The chance that at least ``lost`` of the images that differ are lost, if each is as likely to be gained
    (McNemar 1947, exact and one-sided); 1 if none differ.
    """
    differing = lost + gained
    return float(sum(math.comb(differing, count) for count in range(lost, differing + 1)) / 2**differing)


def paired_difference(before: Tensor, after: Tensor) -> PairedDifference:
    """Compare shares of judgements (N,) in [0, 1] of the same N images; see ``paired_lower`` for the bound.

    If an image was judged several times, its change counts by its size. A change d of size below 1 has d**2 < |d|, so
    the bound is then lower than necessary, never higher.
    """
    change = (after - before).double()
    gained, lost = change.clamp(min=0).sum().item(), (-change).clamp(min=0).sum().item()
    count = len(change)
    return PairedDifference((gained - lost) / count, paired_lower(gained, lost, count), gained, lost, count)


def paired_lower(gained: float, lost: float, count: int, level: float = 0.95) -> float:
    """The lower bound of a paired difference of shares: Tango's score bound, one-sided at ``level``.

    Of ``count`` images, ``gained`` are right only after a change and ``lost`` only before it. The bound is the smallest
    difference D that the score test does not reject (Tango 1998, Statistics in Medicine 17:891)::

        T(D) = (gained - lost - count D) / sqrt(count (2 q + D (1 - D))) < z
        q    = (sqrt(B**2 - 8 count C) - B) / (4 count),   the likeliest P(lost) if the difference is D
        B    = -gained - lost + (2 count - gained + lost) D,   C = -lost D (1 - D)

    At D = 0 this is McNemar's test (1947); at another D it is a test of non-inferiority, "not more than that much
    worse". Fagerland, Lydersen & Laake (2014, Statistics in Medicine 33:2850) recommend it. If no image changed, the
    bound is -z**2 / (count + z**2): Wilson's for 0 lost images.
    """
    assert gained >= 0 and lost >= 0 and count > 0 and gained + lost <= count * (1 + 1e-9)
    z = NormalDist().inv_cdf(level)

    def rejected(difference: float) -> bool:
        b = -gained - lost + (2 * count - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        q = (math.sqrt(max(0.0, b * b - 8 * count * c)) - b) / (4 * count)
        variance = max(0.0, 2 * q + difference * (1 - difference))
        return gained - lost - count * difference >= z * math.sqrt(count * variance)

    low, high = -1.0, (gained - lost) / count
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def images_needed(tolerance: float) -> int:
    """The fewest images of which none may change for ``paired_lower`` to reach ``-tolerance``, in (0, 1]."""
    z = NormalDist().inv_cdf(0.95)
    return math.ceil(z * z * (1 - tolerance) / tolerance - 1e-9)


def roc_area(positives: Tensor, negatives: Tensor, chosen: Tensor) -> Area:
    """P(a positive's score > a negative's), ties half: the area under the ROC curve.

    Parameters
    ----------
    positives, negatives
        Scores of the same N images attacked and clean, (N,), no NaN.
    chosen
        Which of the attacked images are positives, bool (N,), at least one.

    The 95% interval is a percentile bootstrap over images (Efron 1979). It draws an attacked image together with the
    same image clean, because their scores are not independent. If positives are few, or do not overlap with the
    negatives, resampling underestimates the spread; scores are then treated as independent (Hanley & McNeil 1982).
    """
    ordered, order = negatives.double().sort()
    scores = positives[chosen].double()
    ranks = torch.stack([torch.searchsorted(ordered, scores, right=right) for right in (False, True)])
    area = ranks.double().mean().item() / len(negatives)
    low, high = _independent(area, len(scores), len(negatives))
    if len(scores) >= ENOUGH_SCORES and 0 < area < 1:
        return Area(area, _bootstrap(ranks, order, chosen))
    return Area(area, (low, high))


def _independent(area: float, count: int, others: int) -> tuple[float, float]:
    """The interval if all scores were independent: Hanley & McNeil 1982, equations 1 and 2, clipped to [0, 1].

    Their error is 0 if positives and negatives do not overlap; then use Wilson's interval over the smaller group.
    """
    if area in (0, 1):
        return wilson(area * min(count, others), min(count, others))
    both_above, both_below = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (count - 1) * (both_above - area**2) + (others - 1) * (both_below - area**2)
    half = Z95 * math.sqrt(max(0.0, variance) / (count * others))
    return max(0.0, area - half), min(1.0, area + half)


def _bootstrap(ranks: Tensor, order: Tensor, chosen: Tensor) -> tuple[float, float]:
    """The interval of an area over ``RESAMPLES`` draws of the N images.

    ``ranks`` (2, P) holds the number of sorted negatives below each positive, and the number below or equal to it;
    ``order`` (N,) sorts the negatives, ``chosen`` (N,) marks the positives.
    """
    count = len(order)
    generator = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(RESAMPLES):
        drawn = torch.randint(count, (count,), generator=generator)
        weights = torch.bincount(drawn, minlength=count).double()
        below = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
        positive = weights[chosen]
        areas.append((positive * below[ranks].mean(0)).sum() / (positive.sum() * count))
    low, high = torch.stack(areas).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return max(0.0, low), min(1.0, high)


def read_rate(values: Mapping[str, Any]) -> Rate:
    """Read a rate from JSON; raises ValueError, KeyError or TypeError if it is not one."""
    low, high = values["interval"]
    if not 0 <= low <= values["share"] <= high <= 1:
        raise ValueError(f"share {values['share']} with interval {values['interval']}")
    return Rate(values["share"], values["correct"], values["count"], (low, high))


def read_area(values: Mapping[str, Any]) -> Area:
    """Read an area from JSON; raises ValueError, KeyError or TypeError if it is not one."""
    low, high = values["interval"]
    if not 0 <= low <= values["value"] <= high <= 1:
        raise ValueError(f"area {values['value']} with interval {values['interval']}")
    return Area(values["value"], (low, high))
