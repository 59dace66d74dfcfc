"""Steps and starts within a threat: what attacks and adversarial training share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..seeding import SampleGenerator
from ..torch_tools.norms import norm_of, scale_like
from ..vocabulary import Norm
from .threat import Threat

MOVED = 0.02
"""The share of an image's values that an l1 step moves: of 0.01 (Tramer & Boneh 2019) and 0.05 either can be far better
than the other on 28x28 images, this is close to the better one."""


def unit(images: Tensor, norm: Norm) -> Tensor:
    """Each of (N, C, H, W) at length 1 in ``norm``; 0 where it is 0."""
    tiny = torch.finfo(images.dtype).tiny
    # To a largest value of 1 first: squares of very small or large gradients leave float32.
    images = images / scale_like(norm_of(images, "linf").clamp_min(tiny), images)
    return images / scale_like(norm_of(images, norm).clamp_min(tiny), images)


def steepest(gradient: Tensor, norm: Norm, pixels: Tensor | None = None, *, moved: float = MOVED) -> Tensor:
    """The step of length 1 in ``norm`` that a linear loss grows most along; 0 where the gradient is 0 or NaN.

    In ``l1`` that would move one value. Here it is an equal step in each of the share ``moved`` of the values with the
    largest gradients, none in those that the box stops at ``pixels`` (Tramer & Boneh 2019, section 4: sparse l1
    descent). All tensors are (N, C, H, W).
    """
    gradient = gradient.nan_to_num(0)
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        if pixels is not None:
            gradient = gradient.masked_fill(torch.where(gradient > 0, pixels >= 1, pixels <= 0), 0)
        flat = gradient.flatten(1)
        largest = flat.abs().topk(math.ceil(moved * flat.shape[1]), dim=1).indices
        gradient = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(gradient)
    return unit(gradient, norm)


def full_step(gradient: Tensor, pixels: Tensor, norm: Norm, length: float) -> Tensor:
    """``pixels`` moved by ``length`` so that a linear loss grows most; all (N, C, H, W).

    In ``l1`` the box is part of the optimum: the values of the largest gradients go to its walls, one after the other,
    until the length is spent (Croce & Hein 2021, "Mind the box", section 3).
    """
    if norm != "l1":
        return pixels + length * steepest(gradient, norm)
    slope, at = gradient.nan_to_num(0).flatten(1), pixels.flatten(1)
    order = slope.abs().sort(1, descending=True).indices
    room = torch.where(slope > 0, 1 - at, at).masked_fill(slope == 0, 0).gather(1, order)
    taken = (length - room.cumsum(1) + room).clamp_min(0).minimum(room)
    return (at + slope.sign() * torch.zeros_like(at).scatter(1, order, taken)).view_as(pixels)


def random_direction(pixels: Tensor, norm: Norm, generator: SampleGenerator) -> Tensor:
    """A random step of length 1 in ``norm`` for each of (N, C, H, W).

    Uniform on the sphere for ``l2`` and on the faces for ``l1``; a corner of the ball for ``linf``.
    """
    if norm != "l1":
        return steepest(generator.normal(pixels.shape[1:], pixels), norm)
    signed = 2 * generator.uniform(pixels.shape[1:], pixels) - 1
    # -1 is drawn, 1 never is; the logarithm needs both left out.
    falling = torch.log1p(-signed.abs().clamp_max(1 - torch.finfo(signed.dtype).eps))
    return unit(signed.sign() * falling, "l1")


def random_offset(pixels: Tensor, threat: Threat, generator: SampleGenerator) -> Tensor:
    """Uniform in the threat's ball around 0, as ``pixels`` (N, C, H, W)."""
    shape = pixels.shape[1:]
    if threat.norm == "linf":
        return threat.eps * (2 * generator.uniform(shape, pixels) - 1)
    # A radius u^(1/d) makes what is uniform on the surface uniform in the ball of d dimensions.
    radius = generator.uniform((), pixels) ** (1 / shape.numel())
    return threat.eps * random_direction(pixels, threat.norm, generator) * scale_like(radius, pixels)


def random_start(pixels: Tensor, threat: Threat, generator: SampleGenerator) -> Tensor:
    """Uniform in the threat's ball (Madry et al. 2018), then projected into the box."""
    return threat.project(pixels + random_offset(pixels, threat, generator), pixels)
