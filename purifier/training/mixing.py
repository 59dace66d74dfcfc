"""Images that are mixed of two, and their labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..seeding import SampleGenerator


@dataclass(frozen=True)
class Labels:
    """The labels of N images, each mixed of itself and the image before it in the batch."""

    own: Tensor
    """The label of each image, (N,)."""
    kept: Tensor | None = None
    """The share of each image that is its own, (N,); None if nothing is mixed."""

    def target(self, classes: int) -> Tensor:
        """The targets of a cross-entropy: labels (N,), or the shares of the labels in mixed images, (N, classes)."""
        return self.own if self.kept is None else self.shares(classes)

    def shares(self, classes: int) -> Tensor:
        """The share of each label in each image, (N, classes)."""
        shares = F.one_hot(self.own, classes).float()
        return shares if self.kept is None else torch.lerp(shares.roll(1, 0), shares, self.kept[:, None])

    @property
    def larger(self) -> Tensor:
        """The label of the larger part of each image, (N,)."""
        return self.own if self.kept is None else torch.where(self.kept < 0.5, self.own.roll(1), self.own)


def cut_mixed(pixels: Tensor, labels: Tensor, generator: SampleGenerator, share: float) -> tuple[Tensor, Labels]:
    """CutMix (Yun et al. 2019, equation 2) of ``pixels`` (N, C, H, W): that share of the images, drawn at random, get a
    rectangle of the image before them in the batch. 0 changes nothing and draws nothing.

    Its area is uniform between nothing and all of the image, its middle is anywhere, and what is outside the image is
    cut off; it has the image's shape.
    """
    if not share:
        return pixels, Labels(labels)
    whether, area, *middle = generator.uniform((4,), pixels).T
    half = torch.where(whether < share, area, 0).sqrt()[:, None] / 2
    rows, columns = (
        (torch.arange(size, device=pixels.device).add(0.5) / size - at[:, None]).abs() < half
        for size, at in zip(pixels.shape[2:], middle, strict=True)
    )
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    kept = 1 - inside.to(pixels).mean((1, 2, 3))
    return torch.where(inside, pixels.roll(1, 0), pixels), Labels(labels, kept)
