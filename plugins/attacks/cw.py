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
from ._scale import ScaleOption

TANH_AT_BOUND = 0.95
"""The value of tanh at the bounds of the box. With 1, w would be infinite there and no step could leave a bound.

The closer to 1, the more steps a pixel needs to leave a bound: with 0.95 the first step of 0.01 moves it by 5e-4, with
0.999 by 1e-5, with 1 - 1e-6 by 1e-8."""
MAX_W = math.atanh(TANH_AT_BOUND)
DECAY1, DECAY2, ADAM_EPSILON = 0.9, 0.999, 1e-8
"""Adam's decays of the moments and its smallest denominator (Kingma & Ba 2015)."""


@dataclass(frozen=True)
class CarliniWagner(ScaleOption, Attack):
    """Minimises squared l2 distance plus weighted margin with Adam, in a space where the box has no bounds.

    Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", section VI.A: pixels are
    (tanh w + 1) / 2, the margin is f6, and its weight is bisected for each image. Here tanh is stretched a little and w
    is clamped, so the bounds are at a finite w: pixels can leave a bound, and images start unchanged. A descent ends
    early for images whose objective stops falling.

    An image is done once it is misclassified within eps. Otherwise its result is the nearest misclassified point,
    however far, or else the point of highest margin.

    Parameters
    ----------
    steps
        Maximum number of steps per descent, at least 1.
    searches
        Number of descents, at least 1: the weight grows tenfold until one succeeds, and is bisected from then on.
    initial_const
        The margin's first weight, 0.001 as in the authors' code. A large weight with one search is fast, but far
        from the smallest distance.
    step_size
        Adam's step, in units of w.
    confidence
        The margin at which an image counts as misclassified; a larger one transfers better.
    minimal
        Keep looking for the smallest distance after finding one within eps.
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
        target = self.seen(target)
        best = Nearest(target, pixels, labels, threat, minimal=self.minimal, confidence=self.confidence)
        best.note(best.todo(), pixels, target.logits(pixels))
        self._search().run(best, target, pixels, labels, lambda clean: _TanhAdam(clean, self.step_size))
        return best.result(target)

    def _search(self) -> WeightSearch:
        return WeightSearch(self.searches, self.steps, self.confidence, self.initial_const)


class _TanhAdam:
    """Adam on w, with pixels (M, C, H, W) = (tanh w / TANH_AT_BOUND + 1) / 2."""

    def __init__(self, clean: Tensor, step_size: float) -> None:
        self._clean, self._step_size, self._steps = clean, step_size, 0
        self._w = torch.atanh((2 * clean - 1) * TANH_AT_BOUND)
        self._mean, self._square = torch.zeros_like(clean), torch.zeros_like(clean)
        self.point = clean

    def cost(self) -> Tensor:
        return (self.point - self._clean).square().flatten(1).sum(1)

    def move(self, push: Tensor) -> None:
        self._steps += 1
        slope = (1 - self._w.tanh().square()) / (2 * TANH_AT_BOUND)
        gradient = (2 * (self.point - self._clean) - push) * slope
        self._mean = torch.lerp(gradient, self._mean, DECAY1)
        self._square = torch.lerp(gradient.square(), self._square, DECAY2)
        mean = self._mean / (1 - DECAY1**self._steps)
        square = self._square / (1 - DECAY2**self._steps)
        self._w = (self._w - self._step_size * mean / (square.sqrt() + ADAM_EPSILON)).clamp(-MAX_W, MAX_W)
        self.point = ((self._w.tanh() / TANH_AT_BOUND + 1) / 2).clamp(0, 1)

    def select(self, keep: Tensor) -> None:
        self._clean, self._w, self.point = self._clean[keep], self._w[keep], self.point[keep]
        self._mean, self._square = self._mean[keep], self._square[keep]
