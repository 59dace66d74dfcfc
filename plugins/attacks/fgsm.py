"""One-step attacks: FGSM (Goodfellow et al. 2014) and its randomised form (Tramer et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.steps import full_step, random_direction
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._losses import check_loss, loss_from
from ._scale import ScaleOption


@dataclass(frozen=True)
class Fgsm(ScaleOption, Attack):
    """One step of length eps in the steepest direction (Goodfellow et al. 2014, section 4).

    ``linf`` steps along the gradient's sign, ``l2`` along the gradient itself; ``l1`` moves the values with the largest
    gradients to the bounds of the box until eps is spent.

    Parameters
    ----------
    loss
        Loss to maximise: ``ce``, ``dlr``, ``margin`` or ``targeted``.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss("fgsm", self.loss)

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        gradient, _ = target.gradient(pixels, loss_from(self.loss, target, pixels, labels))
        return threat.project(full_step(gradient, pixels, threat.norm, threat.eps), pixels)


@dataclass(frozen=True)
class RandomFgsm(ScaleOption, Attack):
    """A random step of length ``alpha * eps``, then FGSM with the rest (Tramer et al. 2018, equation 7).

    Parameters
    ----------
    alpha
        Length of the random step as a fraction of eps, in [0, 1).
    loss
        Loss to maximise: ``ce``, ``dlr``, ``margin`` or ``targeted``.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    alpha: float = 0.5
    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss("rfgsm", self.loss)
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"attack 'rfgsm': alpha is a fraction of eps and must be in [0, 1), got {self.alpha}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        jump = self.alpha * threat.eps * random_direction(pixels, threat.norm, generator)
        start = threat.project(pixels + jump, pixels)
        gradient, _ = target.gradient(start, loss_from(self.loss, target, pixels, labels))
        return threat.project(full_step(gradient, start, threat.norm, (1 - self.alpha) * threat.eps), pixels)
