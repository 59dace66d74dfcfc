"""The query form of ``joint``: Square (Andriushchenko et al. 2020) on classifier and detector together."""

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

from ._losses import margin
from ._queries import all_positions
from .square import Square

SMALLEST_GAP = 1e-12
"""A smaller gap is no unit to measure in."""
REJECTED = -1e6
"""The goal of an image whose score or logits are NaN, which is rejected."""


@dataclass(frozen=True)
class JointSquare(Attack):
    """Looks for images that are misclassified and not rejected, with queries for logits and scores only.

    It is ``square`` on a goal of its own: the smaller of the classifier's margin and of how far the score is below the
    threshold, in units of their first values. The goal is above 0 where the image is misclassified and accepted: an
    attack on a detector must aim at both at once (Carlini & Wagner 2017, "Adversarial Examples Are Not Easily
    Detected"; Tramer 2022). Where rejected images get another answer, any wrong answer will do: half of the queries
    are for ``square``, half for being rejected and then answered wrongly. The purifier must be calibrated. On the route
    ``oblivious`` the attacker knows of no detector, and this is ``square``.

    Parameters
    ----------
    queries
        Maximum number of queries per restart, at least 1; up to three more say where each part starts.
    p
        Fraction of the image that the first squares cover, in (0, 1].
    restarts
        Random starts per image.
    """

    needs: ClassVar[Literal["scores"]] = "scores"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs_threshold: ClassVar[bool] = True

    queries: int = 5000
    p: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        self._square()

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        if target.route == "oblivious":
            return self._square().perturb(target, pixels, labels, threat, generator)
        if not target.rejection.answers:
            evading = _Evading.at(target, pixels, labels)
            return self._square().perturb(evading, pixels, torch.zeros_like(labels), threat, generator)
        half = replace(self, queries=math.ceil(self.queries / 2))._square()
        found = half.perturb(target, pixels, labels, threat, generator)
        left = all_positions(labels)[target.logits(found).argmax(1) == labels]
        if len(left):
            evading = _Evading.at(target.select(left), pixels[left], labels[left])
            goals = torch.zeros_like(labels[left])
            found[left] = half.perturb(evading, pixels[left], goals, threat, generator.select(left))
        return found

    def _square(self) -> Square:
        return Square(queries=self.queries, p=self.p, restarts=self.restarts)


class _Evading(Target):
    """A target with two classes: 1 if an image is misclassified and accepted, else 0.

    Where rejected images get an answer: 1 if an image is rejected and its answer wrong.

    ``labels`` (N,) are those of the images, ``units`` (N, 2) what the two gaps are measured in.
    """

    def __init__(self, inner: Target, labels: Tensor, units: Tensor) -> None:
        super().__init__(
            inner.classifier, inner.purifier, inner.route, inner.generator, eot=inner.eot, rejection=inner.rejection
        )
        self.inner, self.labels, self.units = inner, labels, units

    @classmethod
    def at(cls, target: Target, pixels: Tensor, labels: Tensor) -> _Evading:
        """The evading target of clean images (N, C, H, W), whose gaps are the units."""
        threshold = target.rejection.threshold
        if threshold is None:
            raise ConfigError(
                "attack 'joint-square' needs a calibrated purifier, whose threshold it evades; calibrate it with "
                "`purifier calibrate`, or use the attack square"
            )
        logits, score = target.logits_with_score(pixels)
        gaps = torch.stack([margin(logits, labels), threshold - score.float()], 1).abs()
        usable = gaps.isfinite() & (gaps > SMALLEST_GAP)
        return cls(target, labels, torch.where(usable, gaps, 1))

    def with_streams(self, generator: SampleGenerator, at: Tensor | slice) -> _Evading:
        return _Evading(self.inner.with_streams(generator, at), self.labels[at], self.units[at])

    def logits(self, pixels: Tensor) -> Tensor:
        logits, score = self.inner.logits_with_score(pixels)
        assert self.rejection.threshold is not None
        wrong, accepted = margin(logits, self.labels), self.rejection.threshold - score.float()
        wrong, accepted = wrong / self.units[:, 0], accepted / self.units[:, 1]
        goal = torch.minimum(wrong, accepted)
        if self.rejection.answers:
            goal = torch.where(accepted >= 0, -1 - accepted, wrong.clamp_min(-1))
        goal = goal.nan_to_num(REJECTED)
        return torch.stack([torch.zeros_like(goal), goal], 1)
