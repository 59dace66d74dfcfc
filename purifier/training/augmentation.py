"""Random shifts and mirror images, the same for an image whatever its batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..seeding import SampleGenerator

SHIFT = 2


def augmented(pixels: Tensor, generator: SampleGenerator, how: Literal["none", "shift", "flip"]) -> Tensor:
    """Each of ``pixels`` (N, C, H, W) moved up to two pixels each way, the border repeated; mirrored for ``flip``."""
    if how == "none":
        return pixels
    height, width = pixels.shape[2:]
    chance = generator.uniform((3,), pixels)
    down, right = (chance[:, place, None].mul(2 * SHIFT + 1).long() - SHIFT for place in (0, 1))
    rows = (torch.arange(height, device=pixels.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + right).clamp(0, width - 1)
    if how == "flip":
        columns = torch.where(chance[:, 2, None] < 0.5, columns.flip(1), columns)
    images, colours = (torch.arange(size, device=pixels.device) for size in pixels.shape[:2])
    return pixels[images[:, None, None, None], colours[:, None, None], rows[:, None, :, None], columns[:, None, None]]
