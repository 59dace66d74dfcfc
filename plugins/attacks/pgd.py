"""Projected gradient descent (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from purifier.errors import ConfigError
from purifier.interfaces import Attack
from purifier.seeding import SampleGenerator
from purifier.target import Target
from purifier.threat import Threat

from ._losses import check_loss, loss_of
from ._steps import Best, random_start, steepest


@dataclass(frozen=True)
class Pgd(Attack):
    """Steepest steps, each projected back into the threat, from random starts (Madry et al. 2018).

    Every iterate is a candidate. An image leaves as soon as the model that will judge it misclassifies it; one that
    never is comes back as the iterate of highest loss. On the route ``oblivious`` no image leaves early, and a random
    target makes the last iterate of each start the only candidate.

    Parameters
    ----------
    steps
        Gradient steps of each start, at least 1.
    step_size
        Length of a step as a share of eps; by default ``2.5 / steps`` and at most 1.
    random_start
        Begin at a uniform point of the ball rather than at the image.
    restarts
        How many random starts an image gets.
    loss
        What grows: ``ce`` or ``margin``.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss("pgd", self.loss)
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(
                f"attack 'pgd': steps and restarts must be at least 1, got {self.steps} and {self.restarts}"
            )
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise ConfigError(f"attack 'pgd': step_size is a share of eps and must be positive, got {self.step_size}")
        if self.restarts > 1 and not self.random_start:
            raise ConfigError("attack 'pgd': restarts without random_start all do the same; set random_start=true")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        best = Best(target, pixels, labels, self.loss)
        if not best.random:
            best.note(best.todo(), pixels, target.logits(pixels))
        for _ in range(self.restarts):
            self._climb(best, target, pixels, labels, threat, generator)
        return best.pixels

    def _climb(
        self,
        best: Best,
        target: Target,
        pixels: Tensor,
        labels: Tensor,
        threat: Threat,
        generator: SampleGenerator,
    ) -> None:
        at = best.todo()
        here = pixels[at]
        if self.random_start:
            here = random_start(here, threat, generator.select(at))
        length = threat.eps * (min(1.0, 2.5 / self.steps) if self.step_size is None else self.step_size)
        for _ in range(self.steps):
            if not len(at):
                return
            gradient, logits = target.select(at).gradient(here, loss_of(self.loss, labels[at]))
            stays = best.note(at, here, logits)
            moved = here + length * steepest(gradient, threat.norm)
            here = threat.project(moved, pixels[at])[stays]
            at = at[stays]
        if len(at):
            best.note(at, here, target.select(at).logits(here), last=True)
