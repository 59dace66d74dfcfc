"""Random shifts and flips; those of an image do not depend on its batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..seeding import SampleGenerator

SHIFT = 2


def augmented(pixels: Tensor, generator: SampleGenerator, how: Literal["none", "shift", "flip"]) -> Tensor:
    """Shift each of ``pixels`` (N, C, H, W) by up to 2 pixels, repeating the border; ``flip`` also mirrors one in two.

    ``none`` changes nothing.
    """
    if how == "none":
        return pixels
    height, width = pixels.shape[2:]
    random = generator.uniform((3,), pixels)
    down, right = (random[:, axis, None].mul(2 * SHIFT + 1).long() - SHIFT for axis in (0, 1))
    rows = (torch.arange(height, device=pixels.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + right).clamp(0, width - 1)
    if how == "flip":
        columns = torch.where(random[:, 2, None] < 0.5, columns.flip(1), columns)
    images, channels = (torch.arange(size, device=pixels.device) for size in pixels.shape[:2])
    return pixels[images[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]
