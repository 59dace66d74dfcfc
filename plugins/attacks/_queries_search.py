"""The random search of the Square attack: which squares to keep."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from purifier.attacking.target import Target

from ._losses import NamedLoss
from ._queries import answers
from ._steps import Best

REQUERY_ROUNDS = 20
"""Rounds after which a random target is queried again about the current image."""


class Squares(Protocol):
    """Proposals for N images, each at its own step; ``here`` (N, C, H, W) are the current images."""

    here: Tensor

    def propose(self) -> tuple[Tensor, Tensor]:
        """Positions (M,) of images with a proposal, and the proposals (M, C, H, W); moves on to the next steps."""

    def take(self, rows: Tensor, proposals: Tensor) -> None:
        """Make ``proposals`` (M, C, H, W) the current images at the positions ``rows`` (M,)."""

    def select(self, keep: Tensor) -> None:
        """Continue with some of the images: ``keep`` is a mask (N,)."""

    def over(self) -> Tensor:
        """Which images have no steps left, (N,) booleans."""


class Search:
    """Tries squares on the images at the positions ``at`` (N,) and passes the final ones to ``best``.

    A random target is queried a second time about a square that beats the current image, and about the current image
    every ``REQUERY_ROUNDS`` rounds. Means count, because otherwise the luckiest answer would stay, unbeatable.
    ``queries`` is the limit per image.
    """

    def __init__(self, target: Target, best: Best, at: Tensor, squares: Squares, queries: int) -> None:
        self._target, self._best, self._at, self._squares = target, best, at, squares
        self._left, self._asked = torch.full_like(at, queries - 1), torch.ones_like(at)
        self._round = 0
        self._loss = best.loss.select(at)
        self._stops_early = target.route != "oblivious" and not best.random
        self._logits = answers(target, at, squares.here, random=best.random)
        self._value, self._wrong = self._judged(self._logits, self._loss)

    def run(self) -> None:
        """Search until every image is fooled or out of steps."""
        self._finish()
        while len(self._at):
            self._step()
            self._finish()

    def _step(self) -> None:
        self._round += 1
        if self._best.random and self._round % REQUERY_ROUNDS == 0:
            self._requery()
            return
        rows, proposals = self._squares.propose()
        if not len(rows):
            return
        at, loss = self._at[rows], self._loss.select(rows)
        logits = answers(self._target, at, proposals, random=self._best.random)
        value, wrong = self._judged(logits, loss)
        self._left[rows] -= 1
        # Misclassified images come first, because the attack's loss may rank images differently.
        before = self._wrong[rows]
        better = (wrong & ~before) | ((wrong == before) & (value > self._value[rows]))
        if self._best.random:
            better &= self._left[rows] > 0
        if self._best.random and better.any():
            twice = better.nonzero().squeeze(1)
            second = answers(self._target, at[twice], proposals[twice], random=True)
            value[twice] = (value[twice] + loss.select(twice)(second)) / 2
            self._left[rows[twice]] -= 1
            better &= value > self._value[rows]
        kept = rows[better]
        self._asked[kept] = 2
        self._logits[kept], self._value[kept], self._wrong[kept] = logits[better], value[better], wrong[better]
        self._squares.take(kept, proposals[better])

    def _requery(self) -> None:
        value = self._loss(answers(self._target, self._at, self._squares.here, random=True))
        self._asked += 1
        self._value += (value - self._value) / self._asked
        self._left -= 1

    def _judged(self, logits: Tensor, loss: NamedLoss) -> tuple[Tensor, Tensor]:
        """The loss (M,) and which images are misclassified, (M,) booleans; of a random target one answer tells not."""
        return loss(logits), (logits.argmax(1) != loss.labels) & (not self._best.random)

    def _finish(self) -> None:
        done = self._squares.over() | (self._left <= 0)
        if self._stops_early:
            done = done | self._wrong
        if not done.any():
            return
        at, here = self._at[done], self._squares.here[done]
        logits = answers(self._target, at, here, random=True) if self._best.random else self._logits[done]
        self._best.note(at, here, logits, last=True)
        stays = ~done
        self._at, self._loss = self._at[stays], self._loss.select(stays)
        self._logits, self._value, self._wrong = self._logits[stays], self._value[stays], self._wrong[stays]
        self._left, self._asked = self._left[stays], self._asked[stays]
        self._squares.select(stays)
