"""What the tests of targets share: purifiers of each kind, and a target behind a small classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import purifier
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import PixelClassifier
from purifier.seeding import SampleGenerator

PIXELS = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class NoConfig:
    pass


class Square(purifier.Purifier):
    """Not linear, so its own gradient, that of its surrogate and no gradient all differ."""

    Config, gradient = NoConfig, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels.square()

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return 3 * pixels


class Noisy(purifier.Purifier):
    Config, gradient = NoConfig, "exact"

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels * (1 if noise is None else noise)


class Rounded(Square):
    gradient = "surrogate"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels * 7).round() / 7


class Detached(Square):
    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels.detach().square()


class Scoring(Square):
    """Purifies and scores in one pass; counts the calls of its score alone."""

    def __init__(self, config: NoConfig) -> None:
        super().__init__(config)
        self.alone = 0

    def score(self, pixels: Tensor) -> Tensor:
        self.alone += 1
        return pixels.pow(3).sum((1, 2, 3))

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.purify(pixels), pixels.pow(3).sum((1, 2, 3))


class NoisyScoring(Noisy):
    def score(self, pixels: Tensor) -> Tensor:
        return pixels.pow(3).sum((1, 2, 3))


class Deaf(Square):
    def score(self, pixels: Tensor) -> Tensor:
        return pixels.detach().sum((1, 2, 3))


class Blind(PixelClassifier):
    """A classifier without gradients."""

    differentiable = False

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.detach().flatten(1)[:, :3]

    def describe(self) -> str:
        return "blind"


def target(classifier, filter_, route, eot=1, count=5) -> Target:
    """With the classifier's own logits."""
    return Target(classifier, filter_(NoConfig()), route, SampleGenerator(7, range(count)), eot=eot).raw()


def first_logit(logits: Tensor) -> Tensor:
    return logits[:, 0]


def both(logits: Tensor, score: Tensor) -> Tensor:
    return logits[:, 0] - 0.5 * score
