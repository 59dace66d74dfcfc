"""Intervals against SciPy's and at the edges."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from purifier.audit import wilson
from purifier.audit.statistics import rate


@pytest.mark.parametrize(("correct", "count"), [(1, 2), (0, 10), (10, 10), (3, 7), (846, 1000), (9999, 10000)])
def test_wilson_is_scipys(correct, count):
    theirs = binomtest(correct, count).proportion_ci(method="wilson")
    assert wilson(correct, count) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_is_the_textbooks():
    # Brown, Cai & DasGupta's formula by hand for 5 of 10: (.5 +- 1.96 sqrt(.025 + .0096)) / 1.384
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_the_edges_are_exact_and_inside():
    assert wilson(0, 20)[0] == 0 and wilson(20, 20)[1] == 1
    assert 0 < wilson(0, 20)[1] < 0.2


def test_a_rate_may_come_from_shares():
    half = rate(2.5, 5)
    assert half.accuracy == 0.5 and half.correct == 2.5 and half.interval == wilson(2.5, 5)
