"""The plugins keep purifier's contracts."""

from pathlib import Path

from purifier.testing import check_attack, check_purifier
from purifier_median.median import Median, MedianConfig
from purifier_median.nudge import Nudge


def test_median_keeps_the_contract(tmp_path: Path) -> None:
    check_purifier(Median(MedianConfig()), tmp_path=tmp_path)
    check_purifier(Median(MedianConfig(size=5)), shape=(3, 32, 32))


def test_nudge_keeps_the_contract() -> None:
    check_attack(Nudge())
    check_attack(Nudge(steps=20), eps=0.03)
