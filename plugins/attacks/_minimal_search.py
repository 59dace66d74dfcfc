"""The search shared by C&W and EAD: descents on distance plus weighted margin, with the weight bisected per image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from purifier.attacking.target import Target
from purifier.errors import ConfigError
from purifier.torch_tools.norms import scale_like

from ._losses import margin
from ._minimal import Nearest

GROWTH = 10.0
"""Factor by which the margin's weight grows until something is found (Carlini & Wagner 2017)."""
CHECKS, PROGRESS = 10, 0.9999
"""A descent ends for an image if a tenth of the steps did not lower its objective to this fraction."""


class Descent(Protocol):
    """M images descending on an objective: their distance minus the term whose gradient is passed to ``move``."""

    point: Tensor
    """The points for the next gradient, (M, C, H, W) in [0, 1]."""

    def cost(self) -> Tensor:
        """The distance term of the objective at ``point``, (M,)."""

    def move(self, push: Tensor) -> None:
        """Take one step; ``push``, same shape as ``point``, is the gradient of the term to increase."""

    def select(self, keep: Tensor) -> None:
        """Continue with some of the images: ``keep`` is a mask (M,)."""


@dataclass(frozen=True)
class Hinge:
    """The margin (M,) of logits (M, K), minus ``confidence`` and at most 0: more margin gains nothing."""

    labels: Tensor
    confidence: float

    def __call__(self, logits: Tensor) -> Tensor:
        gap = margin(logits, self.labels) - self.confidence
        return torch.where(gap > 0, 0, gap)  # in torch 2.15 clamp_max would give a tie no gradient

    def select(self, keep: Tensor) -> Hinge:
        return Hinge(self.labels[keep], self.confidence)


@dataclass(frozen=True)
class WeightSearch:
    """Descents of ``steps`` steps with ``searches`` values of the margin's weight, starting at ``first``.

    With a random target, a descent's candidate is its last misclassified point, rather than its end point.
    """

    searches: int
    steps: int
    confidence: float
    first: float

    def run(self, best: Nearest, target: Target, clean: Tensor, labels: Tensor, start: Callable[..., Descent]) -> None:
        """Run descents from ``start(clean)`` for images ``clean`` (N, C, H, W); ``best`` keeps what they find."""
        low = clean.new_zeros(len(clean))
        high, weight = torch.full_like(low, torch.inf), torch.full_like(low, self.first)
        for _ in range(self.searches):
            at = best.todo()
            if not len(at):
                return
            found = self._descend(best, target, at, start(clean[at]), Hinge(labels[at], self.confidence), weight[at])
            high[at] = torch.where(found, weight[at], high[at])
            low[at] = torch.where(found, low[at], weight[at])
            weight = torch.where(high.isfinite(), (low + high) / 2, weight * GROWTH)

    def _descend(self, best: Nearest, target: Target, at: Tensor, path: Descent, loss: Hinge, weight: Tensor) -> Tensor:
        """Run one descent; whether it misclassified each of the images at positions ``at`` (M,), (M,) booleans."""
        found, last, hits = torch.zeros_like(at, dtype=torch.bool), path.point, path.point.clone()
        live, chosen = torch.arange(len(at), device=at.device), target.select(at)
        before = torch.full_like(weight, torch.inf)
        for step in range(1, self.steps + 1):
            gradient, logits = chosen.gradient(path.point, loss)
            fooled, stays = best.note(at[live], path.point, logits)
            found[live] |= fooled
            if best.random:
                hits[live[fooled]] = path.point[fooled]
            # A random target's objective also rises by chance.
            if step % max(1, self.steps // CHECKS) == 0 and not best.random:
                objective = path.cost() - weight * loss(logits)
                stays = stays & (objective < PROGRESS * before)
                before = objective
            path.move((scale_like(weight, gradient) * gradient).nan_to_num(0, 0, 0))
            last = last.index_copy(0, live, path.point)
            if not stays.all():
                live, weight, before = live[stays], weight[stays], before[stays]
                path.select(stays)
                chosen, loss = chosen.select(stays), loss.select(stays)
            if not len(live):
                break
        best.settle(target, at, torch.where(scale_like(found, last), hits, last) if best.random else last)
        return found


def check_search(attack: str, search: WeightSearch) -> None:
    """Raise ``ConfigError`` unless the options of a search make sense."""
    for name, value in (("searches", search.searches), ("steps", search.steps)):
        if value < 1:
            raise ConfigError(f"attack {attack!r}: {name} must be at least 1, got {value}")
    if not 0 < search.first < float("inf"):
        raise ConfigError(f"attack {attack!r}: initial_const must be a finite positive number, got {search.first}")
    if not 0 <= search.confidence < float("inf"):
        raise ConfigError(f"attack {attack!r}: confidence must be a finite number >= 0, got {search.confidence}")
