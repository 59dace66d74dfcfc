"""What a third party writes: one purifier, one attack, no knowledge of the built-ins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from purifier import Attack, Purifier, Threat
from purifier.attacking.target import Target
from purifier.seeding import SampleGenerator


@dataclass(frozen=True)
class MedianConfig:
    """``size``: side of the window, odd."""

    size: int = 3


class Median(Purifier):
    """Median of each pixel's neighbourhood."""

    Config = MedianConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        side = self.config.size
        padded = F.pad(pixels, (side // 2,) * 4, mode="replicate")
        windows = padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4)
        return windows.sort(dim=4).values[..., windows.shape[4] // 2]


@dataclass(frozen=True)
class Corner(Attack):
    """Tries random corners of the linf box and keeps the first that fools; asks for logits only."""

    tries: int = 20
    needs: ClassVar[Literal["gradient", "scores", "labels"]] = "labels"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        found = pixels.clone()
        for _ in range(self.tries):
            signs = torch.sign(generator.uniform(tuple(pixels.shape[1:]), pixels) - 0.5)
            candidate = threat.project(pixels + threat.eps * signs, pixels)
            fooled = target(candidate).argmax(1) != labels
            found[fooled] = candidate[fooled]
        return found
