"""Confidence bounds for the probability of an answer, from how often it was given."""

from __future__ import annotations

import functools
import math

import torch

HALVINGS = 50
"""The bound is found by halving [0, 1] this often."""
ROUNDING = 1e-9
"""By how much it is lowered, more than float64 rounds off here."""


@functools.lru_cache(maxsize=4096)
def lower_bound(count: int, trials: int, alpha: float) -> float:
    """A probability that is below the true one with confidence 1 - ``alpha`` (Clopper & Pearson 1934, one-sided).

    Parameters
    ----------
    count
        In how many of ``trials`` independent trials it happened, 0 to ``trials``.
    alpha
        How likely the bound may be wrong, in (0, 1).
    """
    if count == 0:
        return 0.0
    low, high = 0.0, count / trials  # the bound is below the share itself for any alpha up to 1/2, else cut there
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(count, trials, middle) < alpha else (low, middle)
    return max(0.0, low - ROUNDING)


def fewest_trials(alpha: float) -> int:
    """How many trials, all alike, put the lower bound above 1/2."""
    return next(trials for trials in range(1, 10_000) if lower_bound(trials, trials, alpha) > 0.5)


def _at_least(count: int, trials: int, share: float) -> float:
    """The probability that something of probability ``share``, in (0, 1), happens ``count`` times or more."""
    happened = torch.arange(count, trials + 1, dtype=torch.float64)
    ways = math.lgamma(trials + 1) - torch.lgamma(happened + 1) - torch.lgamma(trials - happened + 1)
    logs = ways + happened * math.log(share) + (trials - happened) * math.log1p(-share)
    return float(logs.logsumexp(0).exp())
