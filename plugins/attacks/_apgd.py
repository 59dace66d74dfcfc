"""The ascents of Auto-PGD: Croce & Hein 2020 for linf and l2, Croce & Hein 2021 ("Mind the box") for l1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from purifier.attacking.steps import steepest
from purifier.attacking.threat import Threat
from purifier.torch_tools.norms import scale_like

APGD_MOMENTUM = 0.75
"""Weight of the new step in each move, alpha in the paper; the rest continues the previous move."""
RISING = 0.75
"""Fraction of the moves since the last checkpoint that must raise the loss, or the step is halved; rho in the paper."""
SPARSER = 1.5
"""Factor by which steps in l1 are sparser than the best perturbation so far, and by which their length shrinks."""


class Ascent(ABC):
    """M ascents in parallel: the current point, the best point so far, and the step length of each.

    Every tensor attribute has one row per ascent, which is all that ``select`` relies on.

    Parameters
    ----------
    clean, here
        The clean images and the first points, (M, C, H, W).
    threat
        The threat that all points stay within.
    steps
        How many points each ascent will try, including the first.
    """

    def __init__(self, clean: Tensor, here: Tensor, threat: Threat, steps: int) -> None:
        self.clean, self.here, self.threat = clean, here, threat
        self.best, self.best_value = here, here.new_full((len(here),), -torch.inf, dtype=torch.float32)
        self.gradient = self.best_gradient = torch.zeros_like(here)
        self.made = 0

    def select(self, keep: Tensor) -> None:
        """Continue with some of the ascents: ``keep`` is a mask (M,)."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[keep])

    def judge(self, gradient: Tensor, logits: Tensor, value: Tensor) -> None:
        """Record the logits (M, K) at ``here``, the loss ``value`` (M,) and its gradient."""
        if not self.made:
            self.best_logits = logits
        better = value > self.best_value
        wide = scale_like(better, self.here)
        self.best = torch.where(wide, self.here, self.best)
        self.best_gradient = torch.where(wide, gradient, self.best_gradient)
        self.best_logits = torch.where(better.unsqueeze(1), logits, self.best_logits)
        self.best_value = torch.where(better, value, self.best_value)
        self.gradient = gradient

    def move(self) -> None:
        """Move each ascent to its next point."""
        self._review()
        self._step()
        self.made += 1

    def _restart(self, rows: Tensor) -> None:
        wide = scale_like(rows, self.here)
        self.here = torch.where(wide, self.best, self.here)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)

    @abstractmethod
    def _review(self) -> None:
        """At a checkpoint, adapt the step length, and go back to the best point where that helps."""

    @abstractmethod
    def _step(self) -> None:
        """Move ``here``."""


class MomentumAscent(Ascent):
    """Momentum steps of length 2 eps that are halved when progress stalls: Croce & Hein 2020, algorithm 1."""

    def __init__(self, clean: Tensor, here: Tensor, threat: Threat, steps: int) -> None:
        super().__init__(clean, here, threat, steps)
        self._checkpoints = checkpoints(steps)
        self._since = 0
        self._previous = here
        self._length = here.new_full((len(here),), 2 * threat.eps)
        self._value = self._checked = self.best_value
        self._rises = torch.zeros_like(self.best_value)
        self._halved = torch.ones_like(self.best_value, dtype=torch.bool)

    def judge(self, gradient: Tensor, logits: Tensor, value: Tensor) -> None:
        super().judge(gradient, logits, value)
        if self.made:
            self._rises = self._rises + (value > self._value)
        self._value = value

    def _review(self) -> None:
        if self.made not in self._checkpoints:
            return
        # Conditions 1 and 2: too few moves raised the loss; step length and best value did not change since last time.
        few = self._rises < RISING * (self.made - self._since)
        stuck = ~self._halved & (self.best_value <= self._checked)
        self._halved = few | stuck
        self._length = torch.where(self._halved, self._length / 2, self._length)
        self._restart(self._halved)
        self._rises = torch.zeros_like(self._rises)
        self._checked, self._since = self.best_value, self.made

    def _step(self) -> None:
        along = steepest(self.gradient, self.threat.norm) * scale_like(self._length, self.here)
        there = self.threat.project(self.here + along, self.clean)
        if self.made:
            glide = (self.here - self._previous) * (1 - APGD_MOMENTUM)
            there = self.threat.project(torch.lerp(self.here, there, APGD_MOMENTUM) + glide, self.clean)
        self._previous, self.here = self.here, there


class SparseAscent(Ascent):
    """Steps in l1 along the largest gradients, sparser than the best perturbation: Croce & Hein 2021, algorithm 1.

    Where that perturbation gets sparser, steps restart from it at full length; elsewhere they get shorter. Unlike in
    the paper, steps skip values that are at a bound of the box and would leave it.
    """

    def __init__(self, clean: Tensor, here: Tensor, threat: Threat, steps: int) -> None:
        super().__init__(clean, here, threat, steps)
        self._every = math.ceil(0.04 * steps)
        self._length = here.new_full((len(here),), threat.eps)
        self._changed = self._count()
        self._moved = (self._changed / SPARSER).clamp_max(clean[0].numel() / 5)

    def _count(self) -> Tensor:
        """How many values the best point changes, (M,)."""
        return (self.best != self.clean).flatten(1).sum(1).to(self.here.dtype)

    def _review(self) -> None:
        if not self.made or self.made % self._every:
            return
        changed = self._count()
        sparser = changed < 0.95 * self._changed
        full = self.threat.eps
        self._length = torch.where(sparser, full, (self._length / SPARSER).clamp_min(full / 10))
        self._restart(sparser)
        self._changed, self._moved = changed, changed / SPARSER

    def _step(self) -> None:
        stopped = torch.where(self.gradient > 0, self.here >= 1, self.here <= 0)
        flat = self.gradient.masked_fill(stopped, 0).flatten(1).nan_to_num(0)
        moved = self._moved.long().clamp(1, flat.shape[1]).unsqueeze(1)
        largest = flat.abs().topk(int(moved.max()), dim=1).indices
        kept = torch.arange(largest.shape[1], device=flat.device) < moved
        signs = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign() * kept)
        spread = signs / signs.abs().sum(1, keepdim=True).clamp_min(1)
        along = spread.view_as(self.here) * scale_like(self._length, self.here)
        self.here = self.threat.project(self.here + along, self.clean)


def checkpoints(steps: int) -> frozenset[int]:
    """The numbers of moves after which the step length is reviewed: Croce & Hein 2020, section 3.3.

    The first interval is 0.22 of the steps; each next one is 0.03 shorter, but at least 0.06.
    """
    found, share, interval = set(), 0.0, 0.22
    while share + interval <= 1:
        share += interval
        interval = max(interval - 0.03, 0.06)
        found.add(math.ceil(round(share * steps, 6)))
    return frozenset(found)
