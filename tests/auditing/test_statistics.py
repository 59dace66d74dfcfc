"""Intervals against SciPy and at the edges; AUC against scikit-learn and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from purifier.auditing.statistics import (
    Z95,
    Area,
    exact_mcnemar,
    images_needed,
    paired_difference,
    paired_lower,
    rate,
    roc_area,
    wilson,
)


@pytest.mark.parametrize(("correct", "count"), [(1, 2), (0, 10), (10, 10), (3, 7), (846, 1000), (9999, 10000)])
def test_wilson_matches_scipy(correct, count):
    theirs = binomtest(correct, count).proportion_ci(method="wilson")
    assert wilson(correct, count) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_matches_the_textbook():
    # Brown, Cai & DasGupta's formula by hand for 5 of 10: (.5 +- 1.96 sqrt(.025 + .0096)) / 1.384
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_wilson_is_exact_at_the_edges():
    assert wilson(0, 20)[0] == 0 and wilson(20, 20)[1] == 1
    assert 0 < wilson(0, 20)[1] < 0.2


def test_a_rate_may_come_from_fractional_counts():
    half = rate(2.5, 5)
    assert half.share == 0.5 and half.correct == 2.5 and half.interval == wilson(2.5, 5)


def area(positives: torch.Tensor, negatives: torch.Tensor) -> Area:
    """Of positives that are the first of the images, the others of which were never fooled."""
    count = len(positives)
    attacked = torch.cat([positives, torch.zeros(len(negatives) - count)])
    return roc_area(attacked, negatives, torch.arange(len(negatives)) < count)


@pytest.mark.parametrize("levels", [3, 20, 10_000])
def test_auc_matches_scikit_learn_with_and_without_ties(levels):
    numbers = np.random.default_rng(levels)
    positives, negatives = numbers.integers(levels // 4, levels, 37), numbers.integers(0, levels, 90)
    truth = [1] * 37 + [0] * 90
    found = area(torch.from_numpy(positives).float(), torch.from_numpy(negatives).float())
    assert found.value == pytest.approx(roc_auc_score(truth, [*positives, *negatives]), abs=1e-12)
    assert found.interval[0] < found.value < found.interval[1]


def test_infinite_scores_rank_above_all_and_tie_with_each_other():
    scores = torch.tensor([float("inf"), 1.0])
    assert area(scores, torch.tensor([0.0, float("inf")])).value == (0.75 + 0.5) / 2


def test_the_auc_error_with_few_positives_matches_exponential_scores():
    """For exponential scores Hanley & McNeil's two equations are exact."""
    numbers = np.random.default_rng(0)
    times, counts = 3000, (10, 60)
    positives, negatives = numbers.exponential(4, (times, counts[0])), numbers.exponential(1, (times, counts[1]))
    areas = (positives[:, :, None] > negatives[:, None, :]).mean((1, 2))
    assert areas.mean() == pytest.approx(0.8, abs=0.005)
    found = area(torch.tensor([475.0] * 10), torch.arange(60) * 10.0)
    assert found.value == 0.8
    assert (found.value - found.interval[0]) / Z95 == pytest.approx(areas.std(), rel=0.05)


def test_the_auc_interval_accounts_for_paired_images():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(60, 200, generator=generator)
    attacked = 0.6 * clean + 0.6 * torch.randn(60, 200, generator=generator) + 0.5
    everyone = torch.ones(200, dtype=torch.bool)
    found = [roc_area(*pair, everyone) for pair in zip(attacked, clean, strict=True)]
    # Two normal scores, the second moved: P(a > c) of two different images.
    truth = 0.5 * math.erfc(-0.5 / math.sqrt(2 * (1 + 0.6**2 + 0.6**2)))
    covered = sum(one.interval[0] <= truth <= one.interval[1] for one in found)
    assert 53 <= covered <= 60
    spread = torch.tensor([one.value for one in found]).std().item()
    half = sum(one.interval[1] - one.interval[0] for one in found) / 120
    assert half / Z95 == pytest.approx(spread, rel=0.3)


def test_the_auc_interval_is_never_empty_and_stays_inside():
    few, many = torch.arange(3.0), torch.arange(50.0)
    assert area(few + 100, many).value == 1 and area(few + 100, many).interval == wilson(3, 3)
    assert area(few - 100, many).value == 0 and area(few - 100, many).interval == wilson(0, 3)
    assert area(few + 47, many).interval[1] <= 1


def test_the_paired_bound_matches_the_literature():
    # Airway hyper-responsiveness before and after stem cell transplantation (Bentur et al. 2009), 1 against 7 of 21
    # changed: Tango's 95% interval in Fagerland, Lydersen & Laake 2014 is -0.517 to -0.026.
    assert paired_lower(1, 7, 21, level=0.975) == pytest.approx(-0.517, abs=5e-4)
    assert -paired_lower(7, 1, 21, level=0.975) == pytest.approx(-0.026, abs=5e-4)


def by_likelihood(gained: int, lost: int, count: int) -> float:
    """The same bound with the likeliest share of lost images found by maximising, and the root by SciPy."""
    same = count - gained - lost

    def score(difference: float) -> float:
        def unlikely(share: float) -> float:
            parts = ((gained, share + difference), (lost, share), (same, 1 - 2 * share - difference))
            return -sum(number * math.log(max(chance, 1e-300)) for number, chance in parts)

        ends = max(0.0, -difference), (1 - difference) / 2
        share = minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
        spread = math.sqrt((2 * share + difference - difference**2) / count)
        return ((gained - lost) / count - difference) / spread - norm.ppf(0.95)

    return brentq(score, -0.999, (gained - lost) / count - 1e-9)


@pytest.mark.parametrize(
    ("gained", "lost", "count"), [(3, 7, 40), (7, 3, 40), (1, 0, 200), (5, 5, 60), (40, 2, 100), (2, 30, 100)]
)
def test_the_paired_bound_matches_a_numerical_maximum_of_the_likelihood(gained, lost, count):
    assert paired_lower(gained, lost, count) == pytest.approx(by_likelihood(gained, lost, count), abs=1e-5)


@pytest.mark.parametrize("gained", range(0, 12, 3))
@pytest.mark.parametrize("lost", range(0, 12, 3))
def test_at_zero_the_paired_bound_is_mcnemars_test(gained, lost):
    if gained + lost:
        better = (gained - lost) / math.sqrt(gained + lost) >= norm.ppf(0.95)
        assert (paired_lower(gained, lost, 50) >= 0) == better


def test_the_paired_bound_at_the_edges():
    z = norm.ppf(0.95)
    assert paired_lower(0, 0, 60) == pytest.approx(-(z**2) / (60 + z**2))  # Wilson's for 0 of 60
    assert paired_lower(0, 100, 100) == pytest.approx(-1) and 0.9 < paired_lower(100, 0, 100) < 1
    for tolerance in (0.01, 0.02, 0.05, 0.3):
        needed = images_needed(tolerance)
        assert paired_lower(0, 0, needed) >= -tolerance > paired_lower(0, 0, needed - 1)


def test_the_paired_bound_holds_as_often_as_it_says():
    numbers, count, chances = np.random.default_rng(0), 200, (0.05, 0.08)
    truth = chances[0] - chances[1]
    drawn = numbers.multinomial(count, (*chances, 1 - sum(chances)), size=2000)
    held = np.mean([paired_lower(int(gained), int(lost), count) <= truth for gained, lost, _ in drawn])
    assert held == pytest.approx(0.95, abs=0.015)


def test_images_are_paired_and_shares_count_by_their_size():
    before = torch.tensor([1.0, 1, 1, 0, 0, 0.6])
    after = torch.tensor([1.0, 0, 1, 1, 1, 0.2])
    found = paired_difference(before, after)
    assert (found.gained, found.lost, found.count) == (2, pytest.approx(1.4), 6)
    assert found.value == pytest.approx(0.6 / 6) == pytest.approx((after.sum() - before.sum()).item() / 6)
    assert found.lower == paired_lower(found.gained, found.lost, 6) < found.value


def test_exact_mcnemar_is_the_tail_of_a_fair_coin():
    assert exact_mcnemar(8, 1) == pytest.approx(10 / 512)  # nine heads, or eight of nine
    assert exact_mcnemar(7, 0) == pytest.approx(1 / 128)
    assert exact_mcnemar(0, 0) == 1 and exact_mcnemar(0, 5) == 1
