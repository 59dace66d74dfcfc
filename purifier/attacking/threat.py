"""Threats: what an attacker may change, as a norm and a budget eps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ..errors import ConfigError
from ..torch_tools.norms import norm_of, scale_like
from ..vocabulary import Norm

LARGEST_EPS = 1e9
"""The largest eps: squares and sums of larger values leave the range of float32."""


@dataclass(frozen=True)
class Threat:
    """All images within ``eps`` of the clean one in ``norm``, pixels in [0, 1].

    ``eps`` is in pixel units: 8/255 for the usual CIFAR budget. ``l2`` and ``l1`` sum over channels, rows and columns.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ConfigError(f"norm must be one of {', '.join(get_args(Norm))}, got {self.norm!r}")
        if not (isinstance(self.eps, int | float) and math.isfinite(self.eps) and self.eps >= 0):
            raise ConfigError(f"eps must be a finite number >= 0 in pixel units, got {self.eps!r}")
        if self.eps > LARGEST_EPS:
            raise ConfigError(
                f"eps must be at most {LARGEST_EPS:g}: no image is that far from another, got {self.eps:g}"
            )
        if self.norm == "linf" and self.eps > 1:
            raise ConfigError(
                f"eps must be at most 1 for linf (pixels are in [0, 1]), got {self.eps}; try {self.eps:g}/255"
            )

    def project(self, perturbed: Tensor, pixels: Tensor) -> Tensor:
        """Project ``perturbed`` into the threat around ``pixels``; both (N, C, H, W).

        For ``linf`` and ``l1`` the result is the nearest point. For ``l2`` it is projected onto the ball and then onto
        the box: it lies inside both, but may not be the nearest point.
        """
        if self.norm == "linf":
            return torch.clamp(perturbed, pixels - self.eps, pixels + self.eps).clamp(0, 1)
        if self.norm == "l1":
            return _onto_l1_ball_and_box(perturbed, pixels, self.eps)
        delta = perturbed - pixels
        norms = norm_of(delta, "l2").clamp_min(1e-12)
        return (pixels + delta * scale_like((self.eps / norms).clamp_max(1), delta)).clamp(0, 1)

    def distance(self, perturbed: Tensor, pixels: Tensor) -> Tensor:
        """The distance of each image from the clean one, (N,)."""
        return norm_of(perturbed - pixels, self.norm)

    def __str__(self) -> str:
        return f"{self.norm} {self.eps:g}"


def _onto_l1_ball_and_box(perturbed: Tensor, pixels: Tensor, eps: float) -> Tensor:
    """The nearest point in the intersection of ball and box: Croce & Hein 2021, "Mind the box", proposition 2.1.

    Each coordinate of the change, with magnitude ``a`` and ``room`` up to the box's wall, becomes
    ``clamp(a - shrink, 0, room)``. There is one ``shrink`` per image: 0, or the value that reduces their sum to eps.
    The sum is a decreasing, piecewise linear function of ``shrink``, so Newton's method ends on the root; a bracket
    keeps every step in range. The paper's method starts by sorting all breakpoints, which alone takes longer than this.
    """
    delta = (perturbed - pixels).flatten(1)
    start, sizes = pixels.flatten(1), delta.abs()
    room = torch.where(delta > 0, 1 - start, start)
    low, high = sizes.new_zeros(len(sizes), 1), sizes.amax(1, keepdim=True)
    shrink, kept = low, torch.minimum(sizes, room)
    surplus = kept.sum(1, keepdim=True) - eps
    outside = surplus > 0
    rounding = torch.finfo(sizes.dtype).eps
    for step in range(60):
        free = ((kept > 0) & (kept < room)).sum(1, keepdim=True)
        unsettled = outside & (surplus.abs() > rounding * (4 * eps + free * shrink))
        if not unsettled.any():
            break
        low, high = torch.where(surplus > 0, shrink, low), torch.where(surplus > 0, high, shrink)
        newton = shrink + surplus / free
        # After 20 steps only bisect, so that every shape of the sum converges soon.
        bisect = (newton <= low) | (newton >= high) | (free == 0) | (step > 20)
        shrink = torch.where(unsettled, torch.where(bisect, (low + high) / 2, newton), shrink)
        kept = torch.minimum((sizes - shrink).clamp_min(0), room)
        surplus = kept.sum(1, keepdim=True) - eps
    # Aim slightly inside the ball, so that rounding cannot leave it.
    kept = kept * (eps * (1 - 1e-6) / kept.sum(1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)).clamp_max(1)
    nearest = (start + delta.sign() * kept).clamp(0, 1)
    return torch.where(outside, nearest, perturbed.flatten(1).clamp(0, 1)).view_as(pixels)
