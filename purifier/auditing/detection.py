"""How well a purifier's score detects attacked images, and how many its calibrated threshold rejects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rejection.calibration import rejected
from .statistics import Area, Rate, rate, read_area, read_rate, roc_area


@dataclass(frozen=True)
class Detection:
    """How well the purifier's score detects one attack, or what it does on clean images.

    In a sequence, images that an earlier attack fooled count as clean here. An image counts as right if more than half
    of its judgements are right; with a deterministic purifier there is one judgement.
    """

    fooled: int
    """How many images are right when clean and wrong under the attack; 0 for clean images."""
    auc: Area | None
    """P(score of a fooled image > score of a clean one), ties counting half; None if no image is fooled."""
    rejected: Rate | None
    """Share of the fooled images above the calibrated threshold; for clean images the share of all images, which is the
    actual false-positive rate. None if not calibrated or if no image is fooled."""
    held: Rate | None
    """Share of all images that are rejected, or are right both when clean and under the attack (averaged over
    judgements). None if not calibrated."""


@dataclass(frozen=True)
class Seen:
    """The judge's results for N images: the share of judgements in which each was right, and its score, both (N,)."""

    shares: Tensor
    scores: Tensor

    @property
    def right(self) -> Tensor:
        """Right in more than half of the judgements, bool (N,)."""
        return self.shares > 0.5

    @property
    def ranked(self) -> Tensor:
        """Scores to compare, (N,); NaN ranks above everything, because such images are rejected."""
        return torch.where(self.scores.isnan(), torch.inf, self.scores)


def detect(clean: Seen, attacked: Seen | None, threshold: float | None) -> Detection:
    """The detection of an attack on the images of ``clean``, or of the clean images if ``attacked`` is None."""
    shown = clean if attacked is None else attacked
    fooled = clean.right & ~shown.right
    counted = fooled if attacked is not None else torch.ones_like(fooled)
    area = roc_area(shown.ranked, clean.ranked, fooled) if fooled.any() else None
    if threshold is None:
        return Detection(int(fooled.sum()), area, None, None)
    above = rejected(shown.scores, threshold)
    held = torch.where(above, 1.0, torch.minimum(clean.shares, shown.shares)).sum().item()
    return Detection(
        fooled=int(fooled.sum()),
        auc=area,
        rejected=rate(int(above[counted].sum()), int(counted.sum())) if counted.any() else None,
        held=rate(min(held, len(fooled)), len(fooled)),
    )


def read_detection(values: Mapping[str, Any]) -> Detection:
    """Read a detection from JSON; raises ValueError, KeyError or TypeError if it is not one."""
    fooled = values["fooled"]
    if type(fooled) is not int or fooled < 0 or (values["auc"] is None) != (fooled == 0):
        raise ValueError(f"{fooled} fooled images with area {values['auc']}")
    rejected, held = (values[name] and read_rate(values[name]) for name in ("rejected", "held"))
    if rejected and not held:
        raise ValueError("images rejected without a threshold")
    return Detection(fooled, values["auc"] and read_area(values["auc"]), rejected, held)
