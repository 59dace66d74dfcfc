"""What the tests share: purifiers that record their inputs or have it all, and a batch of real images."""

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


@dataclass(frozen=True)
class NoisyConfig:
    width: int = 8


class Noisy(Purifier):
    """Has everything a purifier may have: buffers, drawn noise, dropout, a frozen weight."""

    Config = NoisyConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def __init__(self, config: NoisyConfig) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Conv2d(1, config.width, 3, padding=1),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(config.width, 1, 3, padding=1),
        )
        self.register_parameter("frozen", nn.Parameter(torch.randn(2), requires_grad=False))

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
        return generator.normal(pixels.shape[1:], pixels) if self.training else None

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.layers(pixels if noise is None else pixels + 0.1 * noise))

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        assert noise is not None
        return {"squares": (self.purify(pixels, noise) - target).square().mean()}


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


def same(one: Purifier, other: Purifier) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
