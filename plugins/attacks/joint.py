"""An attack on classifier and detector together (Carlini & Wagner 2017; Bryniarski et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.steps import random_start, steepest, unit
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from purifier.torch_tools.norms import scale_like
from purifier.vocabulary import Norm

from ._losses import NamedLoss, check_loss, loss_from, margin
from ._scale import ScaleOption
from ._steps import check_steps

MORE, LESS = 1.15, 0.95
"""Factors for the loss's weight: up below the wanted margin, down above it."""


@dataclass(frozen=True)
class Joint(ScaleOption, Attack):
    """Looks for misclassified images with a low score, as needed to judge a detector.

    Until an image is misclassified, steps maximise the classifier's loss. From then on they follow a weighted sum of
    two gradients, each scaled to length 1 in the dual norm: down the score, up the loss (the combined loss of Carlini &
    Wagner 2017, "Adversarial Examples Are Not Easily Detected"). The loss's weight is adapted for each image instead of
    searched for: up while its margin is below ``confidence``, down otherwise. Bryniarski et al. 2021 ("Evading
    Adversarial Example Detection Defenses with Orthogonal Projected Gradient Descent") pursue one goal at a time
    instead. Steps shrink to 0 along a cosine. The result is the misclassified iterate of lowest score, or else the
    iterate of highest margin.

    A guard that gives rejected images another answer (``reclassify``, ``abstain`` with a class) is fooled by any wrong
    answer, so a low score is not needed there. Every start then runs twice: once as above, and once up the score until
    the image is rejected and on along the loss of the answer it then gets.

    With a random target only the last iterate of each start is a candidate, ranked on new draws. On the route
    ``oblivious`` the attacker knows of no detector and only maximises the loss.

    Parameters
    ----------
    steps
        Steps per start, at least 1; each costs two gradients from one pass.
    step_size
        Mean step length as a fraction of eps; the first step is twice as long, but none is longer than eps. By
        default ``10 / steps``, at most 1.
    restarts
        Random starts per image.
    loss
        Loss to maximise: ``ce``, ``dlr``, ``margin`` or ``targeted``.
    confidence
        How far to keep the best wrong logit above the right one; more is safer if the judge's answers vary.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 100
    step_size: float | None = None
    restarts: int = 1
    loss: str = "ce"
    confidence: float = 0.1

    def __post_init__(self) -> None:
        check_loss("joint", self.loss)
        check_steps("joint", self.steps, self.step_size, self.restarts)
        if not 0 <= self.confidence < math.inf:
            raise ConfigError(f"attack 'joint': confidence must be a finite number >= 0, got {self.confidence}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = _LowestScore(target, pixels, labels)
        if not best.random:
            best.note(pixels, *target.logits_with_score(pixels))
        climbed = loss_from(self.loss, target, pixels, labels)
        for _ in range(self.restarts):
            for upwards in (False, True) if _answers(target) else (False,):
                here = random_start(pixels, threat, generator)
                here = self._descend(best, target, climbed, here, pixels, threat, upwards=upwards)
                best.note(here, *target.logits_with_score(here))
        return best.pixels

    def _descend(
        self,
        best: _LowestScore,
        target: Target,
        climbed: NamedLoss,
        here: Tensor,
        pixels: Tensor,
        threat: Threat,
        *,
        upwards: bool,
    ) -> Tensor:
        """The last iterate from a start ``here``, (N, C, H, W); ``upwards`` aims at being rejected."""
        dual: Norm = "l1" if threat.norm == "linf" else "l2"
        answers, weight = _answers(target), here.new_ones(len(here))
        crossed = torch.zeros_like(climbed.labels, dtype=torch.bool)
        mean = min(1.0, 10 / self.steps) if self.step_size is None else self.step_size
        for step in range(self.steps):
            (up_loss, lower_score), logits, score = target.gradients_with_score(
                here, lambda logits, score: climbed(logits), lambda logits, score: -score
            )
            if not best.random:
                best.note(here, logits, score)
            up_loss, lower_score = unit(up_loss, dual), unit(lower_score, dual)
            both = lower_score + up_loss * scale_like(weight, up_loss)
            direction = torch.where(scale_like(crossed, up_loss), both, up_loss)
            if answers:
                rejected = scale_like(target.rejection.of(score), up_loss)
                up = torch.where(rejected, up_loss, 0) - lower_score
                direction = up if upwards else torch.where(rejected, lower_score, direction)
            margins = margin(logits, climbed.labels)
            weight = torch.where(crossed, weight * torch.where(margins < self.confidence, MORE, LESS), weight)
            if target.route != "oblivious":
                crossed |= margins > 0
            length = threat.eps * min(1.0, mean * (1 + math.cos(math.pi * step / self.steps)))
            here = threat.project(here + length * steepest(direction, threat.norm), pixels)
        return here


def _answers(target: Target) -> bool:
    """Whether the target gives rejected images an answer that counts."""
    return target.rejection.answers and target.route != "oblivious"


class _LowestScore:
    """The best candidate so far for each of N images: misclassified ones first, then the lowest score.

    Among correctly classified ones, on the route ``oblivious``, which knows no score, and where rejected images get an
    answer, the highest margin counts.
    """

    def __init__(self, target: Target, pixels: Tensor, labels: Tensor) -> None:
        self.pixels = pixels.clone()
        self.random = target.random(pixels)
        self._labels = labels
        self._scored = target.route != "oblivious" and not target.rejection.answers
        self._fooled = torch.zeros_like(labels, dtype=torch.bool)
        self._value = pixels.new_full((len(pixels),), -torch.inf, dtype=torch.float32)

    def note(self, pixels: Tensor, logits: Tensor, score: Tensor) -> None:
        """Keep those of the candidates (N, C, H, W) that are better, by their logits (N, K) and scores (N,)."""
        fooled = logits.argmax(1) != self._labels
        margins = margin(logits, self._labels)
        # A NaN score is rejected, so it counts as the highest.
        low_score = torch.where(score.isnan(), -torch.inf, -score.float())
        value = torch.where(fooled, low_score, margins) if self._scored else margins
        better = (fooled & ~self._fooled) | ((fooled == self._fooled) & (value > self._value))
        self.pixels[better] = pixels[better].detach()
        self._value = torch.where(better, value, self._value)
        self._fooled |= fooled
