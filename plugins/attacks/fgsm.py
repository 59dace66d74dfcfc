"""One-step attacks: FGSM (Goodfellow et al. 2014) and its randomised form (Tramer et al. 2018)."""

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
from ._steps import steepest


@dataclass(frozen=True)
class Fgsm(Attack):
    """One step of length eps along the steepest direction (Goodfellow et al. 2014, section 4).

    ``linf`` steps along the gradient's sign, ``l2`` along the gradient itself.

    Parameters
    ----------
    loss
        What grows: ``ce`` or ``margin``.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss("fgsm", self.loss)

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        gradient, _ = target.gradient(pixels, loss_of(self.loss, labels))
        return threat.project(pixels + threat.eps * steepest(gradient, threat.norm), pixels)


@dataclass(frozen=True)
class RandomFgsm(Attack):
    """A random step of length ``alpha * eps``, then FGSM with the rest (Tramer et al. 2018, equation 7).

    Parameters
    ----------
    alpha
        The random step's share of eps, in [0, 1).
    loss
        What grows: ``ce`` or ``margin``.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    alpha: float = 0.5
    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss("rfgsm", self.loss)
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"attack 'rfgsm': alpha is a share of eps and must be in [0, 1), got {self.alpha}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        jump = self.alpha * threat.eps * steepest(generator.normal(pixels.shape[1:], pixels), threat.norm)
        start = threat.project(pixels + jump, pixels)
        gradient, _ = target.gradient(start, loss_of(self.loss, labels))
        step = (1 - self.alpha) * threat.eps * steepest(gradient, threat.norm)
        return threat.project(start + step, pixels)
