"""SPSA: gradients estimated from differences along random directions (Uesato et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.steps import steepest
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._losses import NamedLoss
from ._queries import answers, blocks
from ._scale import ScaleOption
from ._steps import Best

ADAM_DECAYS = 0.9, 0.999
"""Kingma & Ba 2015."""


@dataclass(frozen=True)
class Spsa(ScaleOption, Attack):
    """Ascent along gradients estimated by simultaneous perturbation (Uesato et al. 2018, algorithm 1; Spall 1992).

    Each step makes ``2 * samples`` queries, at both ends of random sign directions, and one more for the image it
    reaches. An image is done as soon as the model that will judge it misclassifies it.

    Parameters
    ----------
    steps
        Steps of the ascent, at least 1.
    samples
        Directions per gradient estimate, at least 1.
    delta
        Distance from the image to either end of a direction, per pixel.
    lr
        Step length as a fraction of eps: Adam's learning rate, or with ``sign`` the length of the whole step.
    optimizer
        ``adam`` as in the paper, or ``sign`` for plain steepest steps.
    loss
        Loss to maximise: ``margin`` or ``ce``.
    """

    needs: ClassVar[Literal["scores"]] = "scores"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 100
    samples: int = 128
    delta: float = 0.01
    lr: float = 0.1
    optimizer: Literal["adam", "sign"] = "adam"
    loss: str = "margin"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1:
            raise ConfigError(
                f"attack 'spsa': steps and samples must be at least 1, got {self.steps} and {self.samples}"
            )
        for name, value in (("delta", self.delta), ("lr", self.lr)):
            if not 0 < value < math.inf:
                raise ConfigError(f"attack 'spsa': {name} must be a positive number, got {value}")
        if self.optimizer not in ("adam", "sign"):
            raise ConfigError(f"attack 'spsa': optimizer must be adam or sign, got {self.optimizer!r}")
        if self.loss not in ("margin", "ce"):
            raise ConfigError(f"attack 'spsa': loss must be one of margin, ce, got {self.loss!r}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = Best(target, pixels, labels, self.loss)
        at = best.todo()
        here, loss = pixels[at], best.loss.select(at)
        mean, square = torch.zeros_like(here), torch.zeros_like(here)
        for step in range(1, self.steps + 1):
            if not len(at):
                break
            gradient = self._estimate(target, at, here, loss, generator.select(at), random=best.random)
            mean = ADAM_DECAYS[0] * mean + (1 - ADAM_DECAYS[0]) * gradient
            square = ADAM_DECAYS[1] * square + (1 - ADAM_DECAYS[1]) * gradient.square()
            if self.optimizer == "adam":
                spread = (square / (1 - ADAM_DECAYS[1] ** step)).sqrt()
                gradient = mean / (1 - ADAM_DECAYS[0] ** step) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
            moved = gradient if self.optimizer == "adam" and threat.norm == "linf" else steepest(gradient, threat.norm)
            here = threat.project(here + self.lr * threat.eps * moved, pixels[at])
            logits = answers(target, at, here, random=best.random)
            stays = best.note(at, here, logits, last=step == self.steps)
            at, here, mean, square, loss = at[stays], here[stays], mean[stays], square[stays], loss.select(stays)
        return best.pixels

    def _estimate(
        self, target: Target, at: Tensor, here: Tensor, loss: NamedLoss, generator: SampleGenerator, *, random: bool
    ) -> Tensor:
        """An estimate of the loss's gradient at ``here`` (M, C, H, W), up to a factor."""
        shape, total = here.shape[1:], torch.zeros_like(here)
        for count in blocks(self.samples, shape.numel()):
            signs = (generator.uniform((count, *shape), here) - 0.5).sign()
            rows = torch.arange(len(here), device=here.device).repeat_interleave(count)
            there, back = (
                loss.select(rows)(answers(target, at[rows], end.clamp(0, 1), random=random))
                for end in (here[rows] + way * signs.flatten(0, 1) for way in (self.delta, -self.delta))
            )
            difference = (there - back).view(len(here), count)
            total += torch.einsum("ns,ns...->n...", difference.to(signs), signs)
        return total
