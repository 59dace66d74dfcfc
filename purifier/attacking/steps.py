"""Steps and starting points within a threat, shared by attacks and adversarial training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..seeding import SampleGenerator
from ..torch_tools.norms import norm_of, scale_like
from ..vocabulary import Norm
from .threat import Threat

MOVED = 0.02
"""The fraction of an image's values that an l1 step moves. On 28x28 images 0.01 (Tramer & Boneh 2019) and 0.05 can each
be far better than the other; 0.02 is close to the better one."""


def unit(images: Tensor, norm: Norm) -> Tensor:
    """Scale each of ``images`` (N, C, H, W) to length 1 in ``norm``; images of zeros stay zero."""
    tiny = torch.finfo(images.dtype).tiny
    # Scale the largest value to 1 first: squares of very small or large gradients underflow or overflow float32.
    images = images / scale_like(norm_of(images, "linf").clamp_min(tiny), images)
    return images / scale_like(norm_of(images, norm).clamp_min(tiny), images)


def steepest(gradient: Tensor, norm: Norm, pixels: Tensor | None = None, *, moved: float = MOVED) -> Tensor:
    """The step of length 1 in ``norm`` that increases a linear loss most; 0 where the gradient is 0 or NaN.

    In ``l1`` the optimal step changes a single value. This one changes the fraction ``moved`` of the values with the
    largest gradients, each by the same amount, and skips values at ``pixels`` that cannot move further within the box
    (Tramer & Boneh 2019, section 4: sparse l1 descent). All tensors are (N, C, H, W).
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
    """Move ``pixels`` by ``length`` so that a linear loss grows most; all (N, C, H, W).

    In ``l1`` the box is part of the optimum: the values with the largest gradients move to its walls, one after
    another, until the length is used up (Croce & Hein 2021, "Mind the box", section 3).
    """
    if norm != "l1":
        return pixels + length * steepest(gradient, norm)
    slope, start = gradient.nan_to_num(0).flatten(1), pixels.flatten(1)
    order = slope.abs().sort(1, descending=True).indices
    room = torch.where(slope > 0, 1 - start, start).masked_fill(slope == 0, 0).gather(1, order)
    change = (length - room.cumsum(1) + room).clamp_min(0).minimum(room)
    return (start + slope.sign() * torch.zeros_like(start).scatter(1, order, change)).view_as(pixels)


def random_direction(pixels: Tensor, norm: Norm, generator: SampleGenerator) -> Tensor:
    """A random step of length 1 in ``norm`` for each image of ``pixels`` (N, C, H, W).

    Uniform on the sphere for ``l2`` and on the faces of the ball for ``l1``; a corner of the ball for ``linf``.
    """
    if norm != "l1":
        return steepest(generator.normal(pixels.shape[1:], pixels), norm)
    signed = 2 * generator.uniform(pixels.shape[1:], pixels) - 1
    # ``signed`` can be -1, where the logarithm is infinite; it is never 1.
    logarithm = torch.log1p(-signed.abs().clamp_max(1 - torch.finfo(signed.dtype).eps))
    return unit(signed.sign() * logarithm, "l1")


def random_offset(pixels: Tensor, threat: Threat, generator: SampleGenerator) -> Tensor:
    """A point drawn uniformly from the threat's ball around 0, same shape as ``pixels`` (N, C, H, W)."""
    shape = pixels.shape[1:]
    if threat.norm == "linf":
        return threat.eps * (2 * generator.uniform(shape, pixels) - 1)
    # The radius u^(1/d) turns a uniform distribution on the surface into one in the d-dimensional ball.
    radius = generator.uniform((), pixels) ** (1 / shape.numel())
    return threat.eps * random_direction(pixels, threat.norm, generator) * scale_like(radius, pixels)


def random_start(pixels: Tensor, threat: Threat, generator: SampleGenerator) -> Tensor:
    """A point drawn uniformly from the threat's ball (Madry et al. 2018), then projected into the box."""
    return threat.project(pixels + random_offset(pixels, threat, generator), pixels)
