"""Purifiers with obvious scores, for tests of rejection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

import purifier
from purifier.contracts.purifier import Purifier
from purifier.rejection.calibration import CALIBRATION_KEY

Kind = TypeVar("Kind", bound=Purifier)


@dataclass(frozen=True)
class BrightConfig:
    image_shape: tuple[int, int, int] | None = (1, 28, 28)


class Bright(Purifier):
    """Dims images; the brighter an image, the more unusual. Its own classes say where the first pixel's value lies."""

    Config = BrightConfig
    gradient = "exact"

    def __init__(self, config: BrightConfig | None = None) -> None:
        super().__init__(config or BrightConfig())
        self.factor = nn.Parameter(torch.tensor(0.6))
        self.purified = self.scored = 0

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        self.purified += 1
        dimmed = pixels * self.factor
        return dimmed if noise is None else dimmed + 0.1 * noise.clamp(0, 1)

    def score(self, pixels: Tensor) -> Tensor:
        self.scored += 1
        return pixels.flatten(1).mean(1)


class Classes(Bright):
    """The same, with a classifier of its own of 10 classes."""

    def classify(self, pixels: Tensor) -> Tensor:
        return torch.log_softmax(torch.arange(10.0) * pixels[:, 0, 0, :1] + pixels[:, 0, 14, 14:24], 1)


class Random(Bright):
    """The same, with noise for each pixel."""

    def draw(self, pixels: Tensor, generator: purifier.seeding.SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)


def calibrated(purifier: Kind, threshold: float = 0.5) -> Kind:
    """The purifier with a threshold as if it had been calibrated."""
    quantiles = [threshold * place / 100 for place in range(101)]
    stored = {"fpr": 0.05, "threshold": threshold, "data": "demo", "count": 300, "quantiles": quantiles}
    purifier.provenance = {**purifier.provenance, CALIBRATION_KEY: stored}
    return purifier.eval()


def dark_and_bright() -> Tensor:
    """Six images (6, 1, 28, 28): dark, bright, dark, bright, bright, dark; 0.5 divides their scores."""
    noise = torch.rand((6, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    bright = torch.tensor([0.0, 1, 0, 1, 1, 0]).view(-1, 1, 1, 1)
    return noise * 0.3 + bright * 0.7
