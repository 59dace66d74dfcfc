"""Shared by gradient attacks: the iteration, and the strongest image so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from purifier.attacking.steps import MOVED, random_start, steepest, unit
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._losses import loss_of


class Best:
    """The strongest image found so far for each of N: misclassified ones first, then the highest loss.

    If the target is the model that will judge, the first misclassification ends an image's search, and the clean images
    are the first candidates. On the route ``oblivious`` no search ends early: the images are meant for a guard that the
    attack cannot query, and one just beyond the classifier's decision boundary would transfer badly. With a random
    target one good draw is luck, so only the last image of each start is a candidate, ranked by its loss on new draws.

    Parameters
    ----------
    loss
        A name in ``LOSSES``; the attribute ``loss`` is the loss itself, whose targets come from the clean logits.
    """

    def __init__(self, target: Target, pixels: Tensor, labels: Tensor, loss: str) -> None:
        self.pixels = pixels.clone()
        self.random = target.random(pixels)
        self._labels, self._stops = labels, target.route != "oblivious" and not self.random
        self._fooled = torch.zeros_like(labels, dtype=torch.bool)
        self._value = pixels.new_full((len(pixels),), -torch.inf, dtype=torch.float32)
        if self.random and loss != "targeted":
            self.loss = loss_of(loss, labels)
            return
        logits = target.logits(pixels)
        self.loss = loss_of(loss, labels, logits)
        self.note(self.todo(), pixels, logits)

    def note(self, at: Tensor, pixels: Tensor, logits: Tensor, *, last: bool = False) -> Tensor:
        """Keep candidates that are better; which images still need work, (M,) booleans.

        ``at`` (M,) are positions among the N images, ``pixels`` (M, C, H, W) candidates, ``logits`` (M, K) their
        logits; ``last`` means that a start ends here.
        """
        if last or not self.random:
            value = self.loss.select(at)(logits).nan_to_num(-torch.inf, torch.inf, -torch.inf)
            fooled, before = (logits.argmax(1) != self._labels[at]) & (not self.random), self._fooled[at]
            better = (fooled & ~before) | ((fooled == before) & (value > self._value[at]))
            rows = better.nonzero().squeeze(1)
            self.pixels[at[rows]] = pixels[rows].detach()
            self._value[at[rows]] = value[rows]
            self._fooled[at[rows]] = fooled[rows]
        return ~self._fooled[at] if self._stops else torch.ones_like(at, dtype=torch.bool)

    def todo(self) -> Tensor:
        """Positions of the images that still need work."""
        return (~self._fooled if self._stops else torch.ones_like(self._fooled)).nonzero().squeeze(1)


def climb(
    best: Best,
    target: Target,
    pixels: Tensor,
    threat: Threat,
    generator: SampleGenerator | None,
    *,
    steps: int,
    length: float,
    decay: float = 0.0,
    moved: float = MOVED,
) -> None:
    """Take steepest steps of ``length``, each projected, for all unfinished images; ``best`` sees every iterate.

    With a ``generator`` they start at a random point. ``decay`` is the weight of the previous direction in each step:
    g <- decay g + gradient / ||gradient||_1 (Dong et al. 2018, equation 6).
    """
    at = best.todo()
    if not len(at):
        return
    clean, loss, target = pixels[at], best.loss.select(at), target.select(at)
    here = clean if generator is None else random_start(clean, threat, generator.select(at))
    momentum = torch.zeros_like(clean)
    for _ in range(steps):
        gradient, logits = target.gradient(here, loss)
        stays = best.note(at, here, logits)
        if not stays.all():
            at, here, clean, gradient, momentum = (part[stays] for part in (at, here, clean, gradient, momentum))
            loss, target = loss.select(stays), target.select(stays)
        if not len(at):
            return
        if decay:
            gradient = momentum = decay * momentum + unit(gradient.nan_to_num(0), "l1")
        here = threat.project(here + length * steepest(gradient, threat.norm, here, moved=moved), clean)
    best.note(at, here, target.logits(here), last=True)


def check_steps(attack: str, steps: int, step_size: float | None, restarts: int | None = None) -> None:
    """Raise ``ConfigError`` unless the options of an iterative attack make sense."""
    if restarts is None and steps < 1:
        raise ConfigError(f"attack {attack!r}: steps must be at least 1, got {steps}")
    if restarts is not None and (steps < 1 or restarts < 1):
        raise ConfigError(f"attack {attack!r}: steps and restarts must be at least 1, got {steps} and {restarts}")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ConfigError(f"attack {attack!r}: step_size is a fraction of eps and must be positive, got {step_size}")
