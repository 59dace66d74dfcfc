"""Auto-PGD (Croce & Hein 2020; in l1 Croce & Hein 2021): PGD without a step size to choose, on three losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._apgd_search import LossAt, Search
from ._losses import check_loss, targeted_ce, targeted_dlr
from ._scale import ScaleOption
from ._steps import Best, check_steps

TOWARDS = {"ce": targeted_ce, "dlr": targeted_dlr}


@dataclass(frozen=True)
class ApgdCe(ScaleOption, Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1) on the cross-entropy.

    In ``linf`` and ``l2`` it takes steps with momentum; where progress stalls, it halves the step and goes back to the
    best point. In ``l1`` it takes sparse steps in balls of 3, 2 and 1 eps in turn (Croce & Hein 2021, "Mind the box",
    section 4). An image is done as soon as the model that will judge it misclassifies it; otherwise its result is the
    point of highest loss. On the route ``oblivious`` no image is done early, and with a random target only the last
    point of each start is a candidate.

    Parameters
    ----------
    steps
        Gradients per start, at least 1.
    restarts
        Random starts per image.
    loss
        Loss to maximise: ``ce``, ``dlr``, ``margin`` or ``targeted``.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss("apgd-ce", self.loss)
        check_steps("apgd-ce", self.steps, None, self.restarts)

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = Best(target, pixels, labels, self.loss)
        search = Search(best, target, pixels, labels, threat, generator, self.steps)
        search.run(self.restarts, lambda at, number: best.loss.select(at))
        return best.pixels


@dataclass(frozen=True)
class ApgdDlr(ApgdCe):
    """Auto-PGD on the difference of logits ratio (Croce & Hein 2020, equation 6): ``ApgdCe`` on another loss."""

    loss: str = "dlr"

    def __post_init__(self) -> None:
        check_loss("apgd-dlr", self.loss)
        check_steps("apgd-dlr", self.steps, None, self.restarts)


@dataclass(frozen=True)
class ApgdT(ScaleOption, Attack):
    """Auto-PGD towards several wrong classes in turn (Croce & Hein 2020, section 4.1).

    It first tries each of the likeliest classes for a tenth of the steps; those that came closest then get all steps.
    With ``finalists`` as large as ``targets``, all of them get all steps at once, as in the paper, which takes more
    than twice the gradients on images that are not fooled. Steps, early stopping and routes are as in ``ApgdCe``.

    Parameters
    ----------
    steps
        Gradients per start, at least 1.
    restarts
        Random starts per image and class.
    targets
        How many wrong classes to try, at least 1; with K classes at most K - 1.
    finalists
        How many of these classes get all steps, at least 1.
    loss
        Loss to maximise: ``dlr``, the difference of logits ratio towards the class (equation 7), or ``ce``, the
        class's log-probability.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    finalists: int = 3
    loss: str = "dlr"

    def __post_init__(self) -> None:
        check_steps("apgd-t", self.steps, None, self.restarts)
        if self.targets < 1 or self.finalists < 1:
            raise ConfigError(
                f"attack 'apgd-t': targets and finalists must be at least 1, got {self.targets} and {self.finalists}"
            )
        if self.loss not in TOWARDS:
            raise ConfigError(f"attack 'apgd-t': loss must be one of {', '.join(TOWARDS)}, got {self.loss!r}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = Best(target, pixels, labels, "margin")
        search = Search(best, target, pixels, labels, threat, generator, self.steps)
        wrong = target.logits(pixels).float().scatter(1, labels.unsqueeze(1), -torch.inf)
        classes = wrong.topk(min(self.targets, wrong.shape[1] - 1), dim=1).indices
        if self.finalists < classes.shape[1]:
            short = replace(search, steps=math.ceil(self.steps / 10))
            reached = short.run(classes.shape[1], self._towards(labels, classes))
            classes = classes.gather(1, reached.topk(self.finalists, dim=1).indices)
        classes = classes.repeat_interleave(self.restarts, dim=1)
        search.run(classes.shape[1], self._towards(labels, classes))
        return best.pixels

    def _towards(self, labels: Tensor, classes: Tensor) -> LossAt:
        """Losses for starts that each aim at their column of ``classes`` (N, starts)."""
        return lambda at, number: Towards(self.loss, labels[at], classes[at, number])


@dataclass(frozen=True)
class Towards:
    """The loss named ``name`` towards ``classes`` (M,) and away from ``labels`` (M,)."""

    name: str
    labels: Tensor
    classes: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        return TOWARDS[self.name](logits, self.labels, self.classes)

    def select(self, keep: Tensor) -> Towards:
        return replace(self, labels=self.labels[keep], classes=self.classes[keep])
