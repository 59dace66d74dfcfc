"""Carlini & Wagner's l2 attack (2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._minimal import Nearest
from ._minimal_search import WeightSearch, check_search

INSIDE = 0.95
"""What tanh is at the walls of the box, instead of 1: there w would be infinite and no step would ever leave a wall.

The nearer to 1, the more steps a pixel needs to leave a wall: with 0.95 the first of 0.01 moves it by 5e-4, with 0.999
by 1e-5, with 1 - 1e-6 by 1e-8."""
WALL = math.atanh(INSIDE)
FIRST, SECOND, TINY = 0.9, 0.999, 1e-8
"""Adam's decays of the moments and its smallest denominator (Kingma & Ba 2015)."""


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """Descends squared l2 distance plus weighted margin with Adam, in a space where the box has no walls.

    Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", section VI.A: pixels are
    (tanh w + 1) / 2, the margin is f6, and its weight is bisected for each image. Here tanh is stretched a little, so
    that the walls lie at a finite w, where w is held: pixels on them can leave them, and images start unchanged. A
    descent ends early for images whose objective no longer falls.

    An image leaves once it is misclassified within eps; those that never are come back as the nearest misclassified
    image, however far, or else as the one of highest margin.

    Parameters
    ----------
    steps
        The most steps of a descent, at least 1.
    searches
        Descents, at least 1: the weight grows tenfold until one succeeds, and is halved in from there.
    initial_const
        The margin's first weight, 0.001 as in the authors' code. A large one with one search is fast, and far from
        the smallest distance.
    step_size
        Adam's step, in units of w.
    confidence
        The margin an image has to reach to count as misclassified; more carries over better.
    minimal
        Go on for the smallest distance where one within eps is found.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    steps: int = 200
    searches: int = 9
    initial_const: float = 1e-3
    step_size: float = 0.01
    confidence: float = 0.0
    minimal: bool = False

    def __post_init__(self) -> None:
        check_search("cw", self._search())
        if not 0 < self.step_size < float("inf"):
            raise ConfigError(f"attack 'cw': step_size must be a finite positive number, got {self.step_size}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        best = Nearest(target, pixels, labels, threat, minimal=self.minimal, confidence=self.confidence)
        best.note(best.todo(), pixels, target.logits(pixels))
        self._search().run(best, target, pixels, labels, lambda clean: _TanhAdam(clean, self.step_size))
        return best.result(target)

    def _search(self) -> WeightSearch:
        return WeightSearch(self.searches, self.steps, self.confidence, self.initial_const)


class _TanhAdam:
    """Adam on w, where pixels (M, C, H, W) are (tanh w / INSIDE + 1) / 2."""

    def __init__(self, clean: Tensor, step_size: float) -> None:
        self._clean, self._step_size, self._steps = clean, step_size, 0
        self._w = torch.atanh((2 * clean - 1) * INSIDE)
        self._mean, self._square = torch.zeros_like(clean), torch.zeros_like(clean)
        self.point = clean

    def cost(self) -> Tensor:
        return (self.point - self._clean).square().flatten(1).sum(1)

    def move(self, push: Tensor) -> None:
        self._steps += 1
        slope = (1 - self._w.tanh().square()) / (2 * INSIDE)
        gradient = (2 * (self.point - self._clean) - push) * slope
        self._mean = torch.lerp(gradient, self._mean, FIRST)
        self._square = torch.lerp(gradient.square(), self._square, SECOND)
        mean = self._mean / (1 - FIRST**self._steps)
        square = self._square / (1 - SECOND**self._steps)
        self._w = (self._w - self._step_size * mean / (square.sqrt() + TINY)).clamp(-WALL, WALL)
        self.point = ((self._w.tanh() / INSIDE + 1) / 2).clamp(0, 1)

    def select(self, keep: Tensor) -> None:
        self._clean, self._w, self.point = self._clean[keep], self._w[keep], self.point[keep]
        self._mean, self._square = self._mean[keep], self._square[keep]
