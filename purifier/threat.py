"""Threats: what an attacker may change, as a norm and a budget eps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import ConfigError

Norm = Literal["linf", "l2", "l1"]
ORDERS: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}


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
        if self.norm == "linf" and self.eps > 1:
            raise ConfigError(
                f"eps must be at most 1 for linf (pixels are in [0, 1]), got {self.eps}; try {self.eps:g}/255"
            )

    def project(self, perturbed: Tensor, pixels: Tensor) -> Tensor:
        """A point of the threat around ``pixels`` near ``perturbed``; both (N, C, H, W).

        For ``linf`` the nearest; for ``l2`` and ``l1`` the nearest of the ball, then that of the box: inside both.
        """
        if self.norm == "linf":
            return torch.clamp(perturbed, pixels - self.eps, pixels + self.eps).clamp(0, 1)
        delta = perturbed - pixels
        if self.norm == "l1":
            return (pixels + _onto_l1_ball(delta, self.eps)).clamp(0, 1)
        norms = norm_of(delta, "l2").clamp_min(1e-12)
        return (pixels + delta * scale_like((self.eps / norms).clamp_max(1), delta)).clamp(0, 1)

    def distance(self, perturbed: Tensor, pixels: Tensor) -> Tensor:
        """Distance of each image from the clean one, (N,)."""
        return norm_of(perturbed - pixels, self.norm)

    def __str__(self) -> str:
        return f"{self.norm} {self.eps:g}"


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each image of (N, ...), (N,)."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=ORDERS[norm], dim=1)
    return length


def scale_like(values: Tensor, images: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to scale each image by its own number."""
    return values.view(-1, *(1,) * (images.ndim - 1))


def _onto_l1_ball(delta: Tensor, eps: float) -> Tensor:
    """The nearest point of the ball for each of (N, ...): Duchi et al. 2008, figure 1, by sorting."""
    sizes = delta.flatten(1).abs()
    falling = sizes.sort(1, descending=True).values
    ranks = torch.arange(1, sizes.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    thresholds = (falling.cumsum(1) - eps) / ranks
    kept = (falling > thresholds).sum(1, keepdim=True).clamp_min(1)
    shrink = thresholds.gather(1, kept - 1).clamp_min(0)  # 0 inside the ball
    return (delta.flatten(1).sign() * (sizes - shrink).clamp_min(0)).view_as(delta)
