"""Random shifts and flips; those of an image do not depend on its batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..seeding import SampleGenerator

SHIFT = 2
CROP = 8
"""``crop`` shifts by up to this fraction of a side: 4 pixels of 32, as is usual for CIFAR-10."""


def augmented(pixels: Tensor, generator: SampleGenerator, how: Literal["none", "shift", "flip", "crop"]) -> Tensor:
    """Shift, and perhaps mirror, each of ``pixels`` (N, C, H, W) at random.

    ``shift`` moves by up to 2 pixels and repeats the border; ``flip`` also mirrors one image in two. ``crop`` is a
    random crop of the image padded by an eighth of each side, by reflection without repeating the border, and mirrors
    one image in two. ``none`` changes nothing.
    """
    if how == "none":
        return pixels
    height, width = pixels.shape[2:]
    random = generator.uniform((3,), pixels)
    rows, columns = (_moved(side, random[:, axis, None], how == "crop") for axis, side in enumerate((height, width)))
    if how != "shift":
        columns = torch.where(random[:, 2, None] < 0.5, columns.flip(1), columns)
    images, channels = (torch.arange(size, device=pixels.device) for size in pixels.shape[:2])
    return pixels[images[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def _moved(side: int, random: Tensor, crop: bool) -> Tensor:
    """Where each row or column comes from, (N, side), after a move by a random number (N, 1) from [0, 1)."""
    most = side // CROP if crop else SHIFT
    places = torch.arange(side, device=random.device) + random.mul(2 * most + 1).long() - most
    if not crop:
        return places.clamp(0, side - 1)
    return side - 1 - (side - 1 - places.abs()).abs()
