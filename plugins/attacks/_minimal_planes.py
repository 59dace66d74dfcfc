"""The smallest step from a point in the box [0, 1] onto a hyperplane, inside the box, for each norm."""

from __future__ import annotations

import torch
from torch import Tensor

from purifier.vocabulary import Norm

CORNER_STEPS = 100
"""More than Newton's method has ever needed; each step but the last fixes one pixel at its bound for good."""


def onto_plane(points: Tensor, normal: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """The smallest ``step`` in ``norm`` with ``normal . step = gap`` and ``points + step`` in the box, (M, D).

    If the plane is outside the box, the step goes as far towards it as the box allows (Croce & Hein 2020,
    "Minimally distorted adversarial examples with a fast adaptive boundary attack").

    Parameters
    ----------
    points
        In [0, 1], (M, D).
    normal
        The hyperplanes' normals, (M, D); a normal of 0 gives a step of 0.
    gap
        How far ``normal . point`` has to move, (M,).
    """
    towards = normal * gap.sign().unsqueeze(1)
    slope = normal.abs()
    room = torch.where(towards > 0, 1 - points, points)
    if norm == "l1":
        return towards.sign() * _steepest_first(slope, room, gap.abs())
    if norm == "linf":
        level = _level(slope, room.where(slope > 0, 0), gap.abs())
        return towards.sign() * torch.minimum(room, level.unsqueeze(1))
    limits = (room / slope).where(slope > 0, 0)
    level = _level(slope * slope, limits, gap.abs())
    return towards * torch.minimum(limits, level.unsqueeze(1))


def _level(weights: Tensor, limits: Tensor, amount: Tensor) -> Tensor:
    """The level l, (M,), with ``sum_i weights_i min(l, limits_i) = amount``; the highest limit if there is none.

    The sum is piecewise linear and concave in l, so Newton's method rises to the solution from below and reaches it
    after finitely many steps, without sorting.
    """
    top = limits.amax(1)
    level = torch.minimum(amount / weights.sum(1), top)
    level = level.where(level.isfinite(), 0)
    for _ in range(CORNER_STEPS):
        filled = torch.minimum(limits, level.unsqueeze(1))
        missing = amount - (weights * filled).sum(1)
        slope = (weights * (limits > level.unsqueeze(1))).sum(1)
        higher = torch.minimum(level + missing / slope, top)
        rises = (missing > 1e-6 * amount) & (higher > level)
        level = torch.where(rises, higher, level)
        if not rises.any():
            break
    return level


def _steepest_first(slope: Tensor, room: Tensor, amount: Tensor) -> Tensor:
    """How far each pixel moves, (M, D): the steepest to its bound, then the next, until ``amount`` is reached."""
    steep, order = slope.sort(1, descending=True)
    gains = steep * room.gather(1, order)
    before = gains.cumsum(1) - gains
    missing = (amount.unsqueeze(1) - before).clamp_min(0)
    moved = torch.minimum(missing, gains) / steep.clamp_min(torch.finfo(steep.dtype).tiny)
    return torch.zeros_like(room).scatter(1, order, torch.minimum(moved.where(steep > 0, 0), room.gather(1, order)))
