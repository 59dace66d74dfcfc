"""Projected gradient descent (Madry et al. 2018) and the basic iterative method (Kurakin et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.steps import MOVED
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._losses import check_loss
from ._scale import ScaleOption
from ._steps import Best, check_steps, climb


@dataclass(frozen=True)
class Pgd(ScaleOption, Attack):
    """Steepest steps, each projected back into the threat, from random starts (Madry et al. 2018).

    Every iterate is a candidate. An image is done as soon as the model that will judge it misclassifies it; otherwise
    its result is the iterate of highest loss. On the route ``oblivious`` no image is done early, and with a random
    target only the last iterate of each start is a candidate. In ``l1`` this is the sparse descent of Tramer & Boneh
    2019, section 4.

    Parameters
    ----------
    steps
        Gradient steps per start, at least 1.
    step_size
        Step length as a fraction of eps; by default ``2.5 / steps``, at most 1.
    random_start
        Start at a uniform random point of the ball instead of the image.
    restarts
        Random starts per image.
    loss
        Loss to maximise: ``ce``, ``dlr``, ``margin`` or ``targeted``.
    moved
        Fraction of an image's values that an ``l1`` step changes, in (0, 1]. The other norms change all.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    loss: str = "ce"
    moved: float = MOVED

    def __post_init__(self) -> None:
        check_loss("pgd", self.loss)
        check_steps("pgd", self.steps, self.step_size, self.restarts)
        if self.restarts > 1 and not self.random_start:
            raise ConfigError("attack 'pgd': restarts without random_start all do the same; set random_start=true")
        if not 0 < self.moved <= 1:
            raise ConfigError(f"attack 'pgd': moved must be a fraction of the values in (0, 1], got {self.moved}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = Best(target, pixels, labels, self.loss)
        share = min(1.0, 2.5 / self.steps) if self.step_size is None else self.step_size
        starts = generator if self.random_start else None
        for _ in range(self.restarts):
            climb(best, target, pixels, threat, starts, steps=self.steps, length=share * threat.eps, moved=self.moved)
        return best.pixels


@dataclass(frozen=True)
class Bim(ScaleOption, Attack):
    """FGSM in small steps from the image itself, each projected into the threat (Kurakin et al. 2017, section 2.2).

    Candidates are those of ``pgd``.

    Parameters
    ----------
    steps
        Gradient steps, at least 1.
    step_size
        Step length as a fraction of eps; by default ``2.5 / steps``, at most 1.
    loss
        Loss to maximise: ``ce``, ``dlr``, ``margin`` or ``targeted``.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 10
    step_size: float | None = None
    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss("bim", self.loss)
        check_steps("bim", self.steps, self.step_size)

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        steps_from_image = Pgd(
            steps=self.steps, step_size=self.step_size, random_start=False, loss=self.loss, scale=self.scale
        )
        return steps_from_image.perturb(target, pixels, labels, threat, generator)
