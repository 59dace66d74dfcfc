"""The random search of the Square attack: which squares are kept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from purifier.attacking.target import Target

from ._losses import NamedLoss
from ._queries import answers
from ._steps import Best

FOOLED = 1e4
"""More than any loss: what sets misclassified images above the others."""
AGAIN = 20
"""Rounds after which a random target is asked again about the image that stands."""


class Squares(Protocol):
    """Proposals for N images, each at its own step; ``here`` (N, C, H, W) are the images that stand."""

    here: Tensor

    def propose(self) -> tuple[Tensor, Tensor]:
        """Positions (M,) among the N of images with a proposal, and these (M, C, H, W); goes on to the next steps."""

    def take(self, rows: Tensor, proposals: Tensor) -> None:
        """Let ``proposals`` (M, C, H, W) stand at the positions ``rows`` (M,)."""

    def select(self, keep: Tensor) -> None:
        """Go on with some of the images: a (N,) mask."""

    def over(self) -> Tensor:
        """Which images have no step left, (N,) booleans."""


class Search:
    """Tries squares on the images at the positions ``at`` (N,) and hands to ``best`` what each ends with.

    A random target is asked a second time about a square that beats what stands, and every :data:`AGAIN` rounds about
    what stands, and means count: else the luckiest answer would stand, which nothing beats. ``queries`` are the most
    an image may ask.
    """

    def __init__(self, target: Target, best: Best, at: Tensor, squares: Squares, queries: int) -> None:
        self._target, self._best, self._at, self._squares = target, best, at, squares
        self._left, self._heard = torch.full_like(at, queries - 1), torch.ones_like(at)
        self._round = 0
        self._loss = best.loss.select(at)
        self._stops = target.route != "oblivious" and not best.random
        self._logits = answers(target, at, squares.here, random=best.random)
        self._value = self._worth(self._logits, self._loss)

    def run(self) -> None:
        """Until every image is fooled or out of steps."""
        self._leave()
        while len(self._at):
            self._step()
            self._leave()

    def _step(self) -> None:
        self._round += 1
        if self._best.random and self._round % AGAIN == 0:
            self._ask_again()
            return
        rows, proposals = self._squares.propose()
        if not len(rows):
            return
        at, loss = self._at[rows], self._loss.select(rows)
        logits = answers(self._target, at, proposals, random=self._best.random)
        value = self._worth(logits, loss)
        self._left[rows] -= 1
        better = value > self._value[rows]
        if self._best.random:
            better &= self._left[rows] > 0
        if self._best.random and better.any():
            twice = better.nonzero().squeeze(1)
            second = answers(self._target, at[twice], proposals[twice], random=True)
            value[twice] = (value[twice] + self._worth(second, loss.select(twice))) / 2
            self._left[rows[twice]] -= 1
            better &= value > self._value[rows]
        kept = rows[better]
        self._heard[kept] = 2
        self._logits[kept], self._value[kept] = logits[better], value[better]
        self._squares.take(kept, proposals[better])

    def _ask_again(self) -> None:
        value = self._worth(answers(self._target, self._at, self._squares.here, random=True), self._loss)
        self._heard += 1
        self._value += (value - self._value) / self._heard
        self._left -= 1

    def _worth(self, logits: Tensor, loss: NamedLoss) -> Tensor:
        """The loss, higher where the answer is wrong: the attack's own measure need not be the judge's."""
        value, wrong = loss(logits), logits.argmax(1) != loss.labels
        if self._best.random:
            return value
        return torch.where(wrong, torch.inf if self._stops else value + FOOLED, value)

    def _leave(self) -> None:
        done = self._squares.over() | (self._left <= 0)
        if self._stops:
            done = done | (self._value == torch.inf)
        if not done.any():
            return
        at, here = self._at[done], self._squares.here[done]
        logits = answers(self._target, at, here, random=True) if self._best.random else self._logits[done]
        self._best.note(at, here, logits, last=True)
        stays = ~done
        self._at, self._loss = self._at[stays], self._loss.select(stays)
        self._logits, self._value = self._logits[stays], self._value[stays]
        self._left, self._heard = self._left[stays], self._heard[stays]
        self._squares.select(stays)
