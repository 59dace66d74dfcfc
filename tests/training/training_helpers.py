"""What the recipes' tests share: a purifier that records its inputs, and a batch of real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nets import trained
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.contracts.purifier import Purifier
from purifier.data.images import ImageData
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator
from purifier.training.recipe import Batch


@dataclass(frozen=True)
class NoConfig:
    pass


class Recorder(Purifier):
    """Returns its input times a weight, and records what it learns from."""

    Config = NoConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def __init__(self, config: NoConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.asked: list[Tensor] = []

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        self.asked.append(pixels.detach())
        return pixels * self.weight

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        self.seen.append((pixels.detach(), target))
        return {"squares": (self.purify(pixels) - target).square().mean()}


class OfBytes(nn.Module):
    """The small net for images of 0-255, uint8: no gradient can reach the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained("net")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.float() / 255)


def batch_of(
    data: ImageData, indices: Sequence[int], *, epoch: int = 1, done: float = 1.0, net: nn.Module | None = None
) -> Batch:
    """A batch for a classifier, by default the small net."""
    pixels, labels = data.batch(indices)
    generator, lasting = (SampleGenerator(seed, indices) for seed in (epoch, 0))
    classifier = TorchPixelClassifier(net or trained("net"), Preprocessing())
    return Batch(pixels, labels, generator, lasting, indices, classifier, done)
