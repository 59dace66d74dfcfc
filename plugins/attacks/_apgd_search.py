"""How Auto-PGD works through its starts: several in parallel once few images are left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from purifier.attacking.steps import random_start
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.seeding import SampleGenerator
from purifier.torch_tools.norms import scale_like

from ._apgd import Ascent, MomentumAscent, SparseAscent
from ._steps import Best


class RowLoss(Protocol):
    """A loss (M,) of the logits (M, K) of M ascents; a mask (M,) selects some of them."""

    def __call__(self, logits: Tensor) -> Tensor: ...

    def select(self, keep: Tensor) -> RowLoss: ...


LossAt = Callable[[Tensor, Tensor], RowLoss]
"""Positions of images (M,) and the numbers of their starts (M,) -> the loss of these M ascents."""


@dataclass(frozen=True)
class Search:
    """Ascents from random starts for every image that still needs work; ``best`` keeps what they find.

    Starts are numbered, the most promising first. As images are finished, several starts of the remaining ones run in
    parallel, in at most as many rows as there are images: small batches cost nearly as much as large ones. Of several
    successful starts the one with the lowest number counts, so the result is the same as running them one by one.
    """

    best: Best
    target: Target
    pixels: Tensor
    labels: Tensor
    threat: Threat
    generator: SampleGenerator
    steps: int

    def run(self, starts: int, loss_at: LossAt) -> Tensor:
        """Run up to ``starts`` starts per image; the loss each one reached, (N, starts), or -inf if it did not run."""
        reached = self.pixels.new_full((len(self.pixels), starts), -torch.inf, dtype=torch.float32)
        first = 0
        while first < starts and len(todo := self.best.todo()):
            # If no image can finish early, this is 1, so the streams of a random target are used in order.
            width = min(starts - first, len(self.pixels) // len(todo))
            self._run_parallel(todo, range(first, first + width), loss_at, reached)
            first += width
        return reached

    def _run_parallel(self, todo: Tensor, numbers: range, loss_at: LossAt, reached: Tensor) -> None:
        at = todo.repeat(len(numbers))
        number = torch.arange(numbers.start, numbers.stop, device=at.device).repeat_interleave(len(todo))
        *wider, own = self._phases()
        outer = wider[0][0] if wider else self.threat
        here = torch.cat([random_start(self.pixels[todo], outer, self.generator.select(todo)) for _ in numbers])
        loss = loss_at(at, number)
        rows = _Rows(self, at, number, loss)
        for threat, steps in wider:
            here = rows.warm_up(here, threat, steps)
        found, logits = rows.ends(here, *own)
        reached[at, number] = loss(logits).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        for each in numbers:
            # Once a start fools an image, its later starts do not count.
            ends = ((number == each) & torch.isin(at, self.best.todo())).nonzero().squeeze(1)
            self.best.note(at[ends], found[ends], logits[ends], last=True)

    def _phases(self) -> list[tuple[Threat, int]]:
        """The balls to search, the last one the threat's own, and the steps in each."""
        if self.threat.norm != "l1":
            return [(self.threat, self.steps)]
        # Croce & Hein 2021, section 4: going through larger balls first ends at better points.
        early = 3 * self.steps // 10
        wider = [(Threat("l1", times * self.threat.eps), early) for times in (3, 2) if early]
        return [*wider, (self.threat, self.steps - 2 * early)]


class _Rows:
    """M ascents in one batch, for the images at positions ``at`` (M,) and the starts ``number`` (M,)."""

    def __init__(self, search: Search, at: Tensor, number: Tensor, loss: RowLoss) -> None:
        self._best, self._at, self._number, self._loss = search.best, at, number, loss
        self._target = search.target.select(at)
        self._clean, self._labels = search.pixels[at], search.labels[at]
        self._lowest = torch.full_like(search.labels, torch.iinfo(torch.long).max)

    def warm_up(self, here: Tensor, threat: Threat, steps: int) -> Tensor:
        """The points of highest loss, (M, C, H, W), that ``steps`` gradients from ``here`` find within ``threat``."""
        ascent = _ascent(self._clean, here, threat, steps)
        for step in range(steps):
            if step:
                ascent.move()
            gradient, logits = self._target.gradient(ascent.here, self._loss)
            ascent.judge(gradient, logits, self._loss(logits))
        return ascent.best

    def ends(self, here: Tensor, threat: Threat, steps: int) -> tuple[Tensor, Tensor]:
        """The end points (M, C, H, W) of ascents from ``here`` within the threat itself, and their logits (M, K).

        If the target is the model that will judge, an ascent stops once it fools the target, or once an ascent of the
        same image with a lower number does. In the second case its values are meaningless.
        """
        ascent = _ascent(self._clean, here, threat, steps)
        stops_early = self._target.route != "oblivious" and not self._best.random
        ends, answers = ascent.here.clone(), torch.empty(0)
        rows = torch.arange(len(here), device=here.device)
        for step in range(steps):
            gradient, logits = self._target.gradient(ascent.here, self._loss)
            if not step:
                answers = torch.zeros_like(logits)
            if not stops_early:
                self._best.note(self._at, ascent.here, logits)
            elif (fooled := logits.argmax(1) != self._labels).any():
                ends[rows[fooled]], answers[rows[fooled]] = ascent.here[fooled], logits[fooled]
                stays = self._drop_finished(fooled)
                rows, gradient, logits = rows[stays], gradient[stays], logits[stays]
                ascent.select(stays)
                if not len(rows):
                    return ends, answers
            ascent.judge(gradient, logits, self._loss(logits))
            ascent.move()
        logits = self._target.logits(ascent.here)
        if stops_early:
            fooled = logits.argmax(1) != self._labels
            ascent.judge(ascent.gradient, logits, self._loss(logits))
            ends[rows] = torch.where(scale_like(fooled, here), ascent.here, ascent.best)
            answers[rows] = torch.where(fooled.unsqueeze(1), logits, ascent.best_logits)
        else:
            ends[rows], answers[rows] = ascent.here, logits
        return ends, answers

    def _drop_finished(self, fooled: Tensor) -> Tensor:
        """Drop the ascents that are over after some have ended; which ones continue, as a mask (M,)."""
        self._lowest.scatter_reduce_(0, self._at[fooled], self._number[fooled], "amin")
        stays = self._number < self._lowest[self._at]
        self._at, self._number, self._labels = self._at[stays], self._number[stays], self._labels[stays]
        self._loss, self._target = self._loss.select(stays), self._target.select(stays)
        return stays


def _ascent(clean: Tensor, here: Tensor, threat: Threat, steps: int) -> Ascent:
    kind = SparseAscent if threat.norm == "l1" else MomentumAscent
    return kind(clean, threat.project(here, clean), threat, steps)
