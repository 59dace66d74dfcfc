"""What a purifier's score tells of attacked images, and what its calibrated threshold rejects."""

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
    """How the score of a guard's purifier deals with one attack, or with clean images.

    In a sequence the images that attacks before this one fooled count as clean ones here.

    An image counts as right if more than half of its judgements are; a deterministic purifier has one.
    """

    fooled: int
    """Images right when clean and wrong under the attack; 0 for clean images."""
    auc: Area | None
    """P(score of a fooled image > score of a clean one), ties half, over all clean images; None if none is fooled."""
    rejected: Rate | None
    """Share of the fooled images above the calibrated threshold; for clean images the share of all of them, the
    actual false-positive rate. None if not calibrated or none is fooled."""
    held: Rate | None
    """Share of all images that are rejected, or else right when clean and under the attack (the mean over
    judgements). None if not calibrated."""


@dataclass(frozen=True)
class Seen:
    """What the judge saw of N images: the share of judgements in which each was right, and its score, both (N,)."""

    shares: Tensor
    scores: Tensor

    @property
    def right(self) -> Tensor:
        """Right in more than half of the judgements, bool (N,)."""
        return self.shares > 0.5

    @property
    def ranked(self) -> Tensor:
        """Scores to compare, (N,): NaN is rejected and so ranks above all."""
        return torch.where(self.scores.isnan(), torch.inf, self.scores)


def detect(clean: Seen, attacked: Seen | None, threshold: float | None) -> Detection:
    """The figures of an attack on the images that ``clean`` are, or of the clean images where ``attacked`` is None."""
    now = clean if attacked is None else attacked
    fooled = clean.right & ~now.right
    chosen = fooled if attacked is not None else torch.ones_like(fooled)
    area = roc_area(now.ranked, clean.ranked, fooled) if fooled.any() else None
    if threshold is None:
        return Detection(int(fooled.sum()), area, None, None)
    above = rejected(now.scores, threshold)
    standing = torch.where(above, 1.0, torch.minimum(clean.shares, now.shares)).sum().item()
    return Detection(
        fooled=int(fooled.sum()),
        auc=area,
        rejected=rate(int(above[chosen].sum()), int(chosen.sum())) if chosen.any() else None,
        held=rate(min(standing, len(fooled)), len(fooled)),
    )


def read_detection(values: Mapping[str, Any]) -> Detection:
    """A detection from JSON; what cannot be one raises ValueError, KeyError or TypeError."""
    fooled = values["fooled"]
    if type(fooled) is not int or fooled < 0 or (values["auc"] is None) != (fooled == 0):
        raise ValueError(f"{fooled} fooled images with area {values['auc']}")
    rejected, held = (values[name] and read_rate(values[name]) for name in ("rejected", "held"))
    if rejected and not held:
        raise ValueError("images rejected without a threshold")
    return Detection(fooled, values["auc"] and read_area(values["auc"]), rejected, held)
