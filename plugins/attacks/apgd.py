"""Auto-PGD (Croce & Hein 2020; in l1 Croce & Hein 2021): no step size to choose, on three losses."""

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
from ._steps import Best, check_steps

TOWARDS = {"ce": targeted_ce, "dlr": targeted_dlr}


@dataclass(frozen=True)
class ApgdCe(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1) on the cross-entropy.

    In ``linf`` and ``l2`` steps with momentum halve where they stop to pay, and go back to the best point then. In
    ``l1`` sparse steps climb in balls of 3, 2 and 1 eps one after the other (Croce & Hein 2021, "Mind the box",
    section 4). An image leaves as soon as the model that will judge it misclassifies it; one that never is comes back
    as the point of highest loss. On the route ``oblivious`` no image leaves early, and a random target makes the last
    point of each start the only candidate.

    Parameters
    ----------
    steps
        Gradients of each start, at least 1.
    restarts
        How many random starts an image gets.
    loss
        What grows: ``ce``, ``dlr``, ``margin`` or ``targeted``.
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
        best = Best(target, pixels, labels, self.loss)
        search = Search(best, target, pixels, labels, threat, generator, self.steps)
        search.run(self.restarts, lambda at, number: best.loss.select(at))
        return best.pixels


@dataclass(frozen=True)
class ApgdDlr(ApgdCe):
    """Auto-PGD on the difference of logits ratio (Croce & Hein 2020, equation 6): :class:`ApgdCe`, another loss."""

    loss: str = "dlr"

    def __post_init__(self) -> None:
        check_loss("apgd-dlr", self.loss)
        check_steps("apgd-dlr", self.steps, None, self.restarts)


@dataclass(frozen=True)
class ApgdT(Attack):
    """Auto-PGD towards one wrong class after the other (Croce & Hein 2020, section 4.1).

    The likeliest classes are tried first, for a tenth of the steps each; those of them that came closest get all steps.
    With ``finalists`` as large as ``targets`` all do at once, which is the paper's way and takes more
    than twice the gradients where images hold. Steps, leaving and routes are those of :class:`ApgdCe`.

    Parameters
    ----------
    steps
        Gradients of each start, at least 1.
    restarts
        How many random starts an image gets for each class.
    targets
        How many wrong classes, at least 1; with K classes there are K - 1.
    finalists
        How many of the classes get all steps, at least 1.
    loss
        What grows: ``dlr``, the difference of logits ratio towards the class (equation 7), or ``ce``, the class's
        log-probability.
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
        """The losses of starts that each aim at their column of ``classes`` (N, starts)."""
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
