"""Images to start a walk from, in the hope that they are misclassified."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from purifier.seeding import SampleGenerator

NOISE_SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of noise in successive attempts: pure noise may be classified as the image's own class."""
GRIDS = (0, 2, 4, 8)
"""Cells per side of successive noises, enlarged to the image; 0 is a cell for each pixel."""


def attempt(number: int, clean: Tensor, generator: SampleGenerator) -> Tensor:
    """The start number ``number`` for images (N, C, H, W) in [0, 1]: negative, black, white, then noise.

    Classifiers often give all white noise one label, which no image of that label could start from. So noise comes in
    several scales, grey or black and white, and after 16 of those also mixed with the image.
    """
    if number < 3:
        return (1 - clean, torch.zeros_like(clean), torch.ones_like(clean))[number]
    number -= 3
    cells, size = GRIDS[number % 4], clean.shape[2:]
    noise = generator.uniform((clean.shape[1], *((cells, cells) if cells else size)), clean)
    if number % 8 >= 4:
        noise = (noise > 0.5).to(clean)
    if cells:
        noise = functional.interpolate(noise, size, mode="bilinear")
    return torch.lerp(clean, noise, NOISE_SHARES[number // 16 % 4])
