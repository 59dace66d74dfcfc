"""The momentum iterative method (Dong et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._losses import check_loss
from ._scale import ScaleOption
from ._steps import Best, check_steps, climb


@dataclass(frozen=True)
class Mim(ScaleOption, Attack):
    """Steps along a decaying sum of gradients, each scaled to l1 length 1 (Dong et al. 2018, algorithm 1).

    There is no random start. Candidates are those of ``pgd``. A gradient of 0 adds nothing to the sum; dividing by its
    length, as torchattacks' MIFGSM does, would make the image NaN.

    Parameters
    ----------
    steps
        Gradient steps, at least 1.
    step_size
        Step length as a fraction of eps; by default ``1 / steps`` as in the paper.
    decay
        Decay factor of the sum, at least 0 (mu in the paper); 0 is ``bim`` at this step size.
    loss
        Loss to maximise: ``ce``, ``dlr``, ``margin`` or ``targeted``.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss("mim", self.loss)
        check_steps("mim", self.steps, self.step_size)
        if not 0 <= self.decay < float("inf"):
            raise ConfigError(f"attack 'mim': decay must be a finite number >= 0, got {self.decay}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = Best(target, pixels, labels, self.loss)
        length = threat.eps * (1 / self.steps if self.step_size is None else self.step_size)
        climb(best, target, pixels, threat, None, steps=self.steps, length=length, decay=self.decay)
        return best.pixels
