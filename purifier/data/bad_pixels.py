"""Bad images, which no purifier takes: those with a pixel that is NaN, infinite or outside [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import PixelError
from .reading import bounds_of

RANGE_SLACK = 1e-2
"""How far outside [0, 1] float16 normalisation can push a valid pixel."""
NEAR = 0.5
"""Values this far outside [0, 1] can be the overshoot of a resized image; bicubic gives -0.12 to 1.19."""
MOST_NAMED = 10


def bad_images(pixels: Tensor, *, clamp: bool = False) -> Tensor:
    """Which images of pixels (N, C, H, W) are bad, bool (N,), without reading values, so that tracers can follow.

    With ``clamp`` any finite value is good, because it will be clamped.
    """
    low, high = (-math.inf, math.inf) if clamp else (-RANGE_SLACK, 1 + RANGE_SLACK)
    good = (pixels > low) & (pixels < high)  # both false for NaN
    return ~good.flatten(1).all(1)


def blackened(pixels: Tensor, bad: Tensor) -> Tensor:
    """Pixels (N, C, H, W) with black images in place of the bad ones, bool (N,), so that NaN spreads to no other."""
    return pixels.masked_fill(bad.view(-1, 1, 1, 1), 0)


def check_range(pixels: Tensor, *, name: str, clamp: bool = False) -> bool:
    """Whether pixels (N, C, H, W) could be checked: there are some, and their values can be read, see ``bounds_of``.

    Raises
    ------
    PixelError
        Some images are bad, see ``bad_images``; it names their positions.
    """
    bounds = bounds_of(pixels)
    if bounds is None:
        return False
    low, high = bounds
    if clamp and math.isfinite(low) and math.isfinite(high):
        return True
    if low > -RANGE_SLACK and high < 1 + RANGE_SLACK:
        return True
    bad = bad_images(pixels.detach(), clamp=clamp)
    if bool(bad.any()):
        raise PixelError(f"{name}: expected values in [0, 1], got {_described(pixels.detach(), bad)}")
    return True


def _described(pixels: Tensor, bad: Tensor) -> str:
    """``NaN in images 3 and 17 of 64 (counted from 0); ...`` with what to do about it."""
    values = pixels.flatten(1)
    lost, endless = values.isnan().any(1), values.isinf().any(1)
    rest = bad & ~lost & ~endless
    found, advice = [], []
    for what, which in (("NaN", lost), ("infinity", endless & ~lost)):
        if bool(which.any()):
            found.append(f"{what} in {_positions(which)}")
    if found:
        advice.append("fix the code that makes NaN or infinity, or let the guard reject such images (on_bad_pixels)")
    if bool(rest.any()):
        low, high = (bound.item() for bound in torch.aminmax(values[rest]))
        found.append(f"[{low:.4g}, {high:.4g}] in {_positions(rest)}")
        advice.append("describe the images the classifier expects with preprocessing= (mean, std, scale=255)")
        if low > -NEAR and high < 1 + NEAR:
            advice.append("if resizing made them overshoot, clamp them (a guard does, with on_bad_pixels='clamp')")
    return f"{', '.join(found)} of {len(pixels)} (counted from 0); {'; '.join(advice)}"


def _positions(which: Tensor) -> str:
    """``image 3``, ``images 3, 5 and 17``; at most ten are named."""
    places: list[int] = which.nonzero().flatten().tolist()
    if len(places) == 1:
        return f"image {places[0]}"
    named = places[:MOST_NAMED]
    last = f"{len(places) - len(named)} more" if len(places) > len(named) else str(named.pop())
    return f"images {', '.join(map(str, named))} and {last}"
