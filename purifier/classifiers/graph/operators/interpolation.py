"""How an axis is resampled: from the sizes before and after to weights, as the ONNX operator Resize defines it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Resampling:
    """The attributes of Resize that say where an element comes from and how it is mixed."""

    mode: str = "nearest"
    transform: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis before and after; ``start`` and ``end`` are the part to take, as shares of it."""

    size: int
    made: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def places(axis: Axis, how: Resampling) -> Array:
    """Where in the input the elements of the output lie, (made,)."""
    steps = np.arange(axis.made, dtype=np.float64)
    halves = (steps + 0.5) / axis.scale - 0.5
    match how.transform:
        case "half_pixel":
            return halves
        case "half_pixel_symmetric":
            share = axis.made / (axis.scale * axis.size)
            return axis.size / 2 * (1 - share) + halves
        case "pytorch_half_pixel":
            return halves if axis.made > 1 else np.zeros(axis.made)
        case "asymmetric":
            return steps / axis.scale
        case "tf_half_pixel_for_nn":
            return (steps + 0.5) / axis.scale
        case "align_corners":
            length = axis.scale * axis.size
            return steps * (axis.size - 1) / (length - 1) if length != 1 else np.zeros(axis.made)
        case "tf_crop_and_resize":
            last = axis.size - 1
            if axis.made > 1:
                return axis.start * last + steps * (axis.end - axis.start) * last / (axis.made - 1)
            return np.full(axis.made, (axis.start + axis.end) / 2 * last)
    raise ValueError(f"unknown coordinate_transformation_mode {how.transform!r}")


def nearest_places(axis: Axis, how: Resampling) -> Array:
    """The input element that each output element takes, int64 (made,)."""
    where = places(axis, how)
    rounding = {
        "round_prefer_floor": lambda: np.ceil(where - 0.5),
        "round_prefer_ceil": lambda: np.floor(where + 0.5),
        "floor": lambda: np.floor(where),
        "ceil": lambda: np.ceil(where),
    }
    return np.clip(rounding[how.nearest](), 0, axis.size - 1).astype(np.int64)


def weights(axis: Axis, how: Resampling) -> Array:
    """How much of each input element is in each output element, float64 (made, size)."""
    where = places(axis, how)
    base = np.floor(where)
    taps, shares = _filter(where - base, axis.scale, how)
    sources = base[:, None].astype(np.int64) + taps
    outside = (sources < 0) | (sources >= axis.size)
    if how.exclude_outside:
        shares = np.where(outside, 0.0, shares)
        shares = shares / shares.sum(1, keepdims=True)
    found = np.zeros((axis.made, axis.size))
    rows = np.repeat(np.arange(axis.made)[:, None], len(taps), 1)
    np.add.at(found, (rows, np.clip(sources, 0, axis.size - 1)), shares)
    return found


def _filter(offset: Array, scale: float, how: Resampling) -> tuple[Array, Array]:
    """The elements that are mixed, counted from the one before, and their shares (made, taps)."""
    reach = 1 if how.mode == "linear" else 2
    shrink = min(scale, 1.0) if how.antialias else 1.0
    first = math.floor(-reach / shrink) + 1
    taps = np.arange(first, 2 - first)
    distance = np.abs((taps - offset[:, None]) * shrink)
    if how.mode == "linear":
        shares = np.clip(1 - distance, 0, 1)
    else:
        a = how.cubic  # Keys, 1981, eq. 15 with a = -1/2 in general form
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        shares = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return taps, shares / shares.sum(1, keepdims=True)
