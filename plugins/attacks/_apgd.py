"""The climbs of Auto-PGD: Croce & Hein 2020 for linf and l2, Croce & Hein 2021 ("Mind the box") for l1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from purifier.attacking.steps import steepest
from purifier.attacking.threat import Threat
from purifier.torch_tools.norms import scale_like

APGD_MOMENTUM = 0.75
"""The share of the new step in each move, alpha in the paper; the rest goes on as before."""
RISING = 0.75
"""The share of a stretch's moves that must raise the loss for the step to keep its length, rho in the paper."""
SPARSER = 1.5
"""By how much the steps in l1 are sparser than the best change so far, and how fast their length shrinks."""


class Ascent(ABC):
    """M climbs side by side: where each stands, its best point so far, and the length of its step.

    Every tensor among the attributes has a row for each climb, which is all that :meth:`select` relies on.

    Parameters
    ----------
    clean, here
        The clean images and the first points, (M, C, H, W).
    threat
        What the climbs stay inside.
    steps
        How many points each climb will try, the first included.
    """

    def __init__(self, clean: Tensor, here: Tensor, threat: Threat, steps: int) -> None:
        self.clean, self.here, self.threat = clean, here, threat
        self.best, self.best_value = here, here.new_full((len(here),), -torch.inf, dtype=torch.float32)
        self.gradient = self.best_gradient = torch.zeros_like(here)
        self.made = 0

    def select(self, keep: Tensor) -> None:
        """Go on with some of the climbs: ``keep`` is a (M,) mask."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[keep])

    def judge(self, gradient: Tensor, logits: Tensor, value: Tensor) -> None:
        """Take the logits (M, K) at ``here``, the loss ``value`` (M,) and its gradient."""
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
        """The next point of each climb."""
        self._review()
        self._step()
        self.made += 1

    def _restart(self, rows: Tensor) -> None:
        wide = scale_like(rows, self.here)
        self.here = torch.where(wide, self.best, self.here)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)

    @abstractmethod
    def _review(self) -> None:
        """At a checkpoint, settle the step's length and go back to the best point where that helps."""

    @abstractmethod
    def _step(self) -> None:
        """Move ``here``."""


class MomentumAscent(Ascent):
    """Steps with momentum that begin 2 eps long and halve where they stop to pay: Croce & Hein 2020, algorithm 1."""

    def __init__(self, clean: Tensor, here: Tensor, threat: Threat, steps: int) -> None:
        super().__init__(clean, here, threat, steps)
        self._checkpoints = checkpoints(steps)
        self._since = 0
        self._before = here
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
        # Conditions 1 and 2: too few moves raised the loss; neither length nor best value changed since last time.
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
            glide = (self.here - self._before) * (1 - APGD_MOMENTUM)
            there = self.threat.project(torch.lerp(self.here, there, APGD_MOMENTUM) + glide, self.clean)
        self._before, self.here = self.here, there


class SparseAscent(Ascent):
    """Steps in l1 along the largest gradients, as many as the best change has values: Croce & Hein 2021, algorithm 1.

    Where that change grows sparser the steps begin anew from it at full length, elsewhere they shorten. Unlike the
    paper's they leave out values that the box stops.
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
        taken = torch.arange(largest.shape[1], device=flat.device) < moved
        signs = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign() * taken)
        spread = signs / signs.abs().sum(1, keepdim=True).clamp_min(1)
        along = spread.view_as(self.here) * scale_like(self._length, self.here)
        self.here = self.threat.project(self.here + along, self.clean)


def checkpoints(steps: int) -> frozenset[int]:
    """After how many moves the step's length is reviewed: Croce & Hein 2020, section 3.3.

    The first stretch is 0.22 of the steps, each further one 0.03 shorter, none below 0.06.
    """
    found, share, stretch = set(), 0.0, 0.22
    while share + stretch <= 1:
        share += stretch
        stretch = max(stretch - 0.03, 0.06)
        found.add(math.ceil(round(share * steps, 6)))
    return frozenset(found)
