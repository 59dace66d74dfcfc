"""Elastic-net attack, EAD (Chen et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._minimal import Nearest
from ._minimal_search import WeightSearch, check_search
from ._scale import ScaleOption


@dataclass(frozen=True)
class Ead(ScaleOption, Attack):
    """Minimises l1 distance plus weighted margin by shrinking and thresholding, so few pixels change.

    Chen et al. 2018, "EAD: Elastic-Net Attacks to Deep Neural Networks via Adversarial Examples", algorithm 1 (FISTA)
    with the decision rule l1. The margin's weight is bisected for each image as in Carlini & Wagner 2017, and the step
    shrinks to 0 like a square root, and so does the threshold, so the objective stays the same. The paper also adds the
    squared l2 distance, the other half of an elastic net; only l1 counts here, and without it the results are nearer.
    The points where gradients are taken are also the candidates, which saves a forward pass per step. A descent ends
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
        The margin's first weight. If its product with ``step_size`` is below ``beta``, a gradient of 1 has no effect.
    step_size
        The first step size, a factor on the gradient.
    beta
        Shrinkage of the first step, in pixel units: smaller changes are undone, and all others reduced by this much.
        Its ratio to ``step_size`` is the weight of the l1 distance.
    squared
        Weight of the squared l2 distance; 1 as published.
    confidence
        The margin at which an image counts as misclassified; a larger one transfers better.
    minimal
        Keep looking for the smallest distance after finding one within eps.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("l1",)

    steps: int = 200
    searches: int = 9
    initial_const: float = 1.0
    step_size: float = 0.01
    beta: float = 0.01
    squared: float = 0.0
    confidence: float = 0.0
    minimal: bool = False

    def __post_init__(self) -> None:
        check_search("ead", self._search())
        if not 0 < self.step_size < float("inf"):
            raise ConfigError(f"attack 'ead': step_size must be a finite positive number, got {self.step_size}")
        if not 0 <= self.beta < float("inf"):
            raise ConfigError(f"attack 'ead': beta must be a finite number >= 0, got {self.beta}")
        if not 0 <= self.squared < float("inf"):
            raise ConfigError(f"attack 'ead': squared must be a finite number >= 0, got {self.squared}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = Nearest(target, pixels, labels, threat, minimal=self.minimal, confidence=self.confidence)
        best.note(best.todo(), pixels, target.logits(pixels))
        self._search().run(best, target, pixels, labels, lambda clean: _Fista(clean, self))
        return best.result(target)

    def _search(self) -> WeightSearch:
        return WeightSearch(self.searches, self.steps, self.confidence, self.initial_const)


class _Fista:
    """Shrinking and thresholding with momentum (Beck & Teboulle 2009) from images (M, C, H, W)."""

    def __init__(self, clean: Tensor, settings: Ead) -> None:
        self._clean, self._settings, self._steps = clean, settings, 0
        self._iterate = self.point = clean

    def cost(self) -> Tensor:
        delta, settings = (self.point - self._clean).flatten(1), self._settings
        return settings.squared * delta.square().sum(1) + settings.beta / settings.step_size * delta.abs().sum(1)

    def move(self, push: Tensor) -> None:
        settings = self._settings
        left = (1 - self._steps / settings.steps) ** 0.5
        delta = self.point - self._clean
        delta = delta - left * settings.step_size * (2 * settings.squared * delta - push)
        # A threshold that did not shrink with the step would weigh l1 more and more against the margin.
        shrunk = delta.sign() * (delta.abs() - left * settings.beta).clamp_min(0)
        iterate = (self._clean + shrunk).clamp(0, 1)
        momentum = self._steps / (self._steps + 3)
        # The paper does not clamp this point to the box, but here it must be a valid candidate.
        self.point = (iterate + momentum * (iterate - self._iterate)).clamp(0, 1)
        self._iterate = iterate
        self._steps += 1

    def select(self, keep: Tensor) -> None:
        self._clean, self._iterate, self.point = self._clean[keep], self._iterate[keep], self.point[keep]
