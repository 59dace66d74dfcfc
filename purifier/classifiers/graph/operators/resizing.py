"""Resize and Upsample."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node
from ..table import Call, operator
from ..values import Quantised, straight_through
from .interpolation import Axis, Resampling, nearest_places, places, weights


@operator("Upsample", host=(1,), quantised="first")
def upsample(node: Node) -> Call:
    how = Resampling(_mode(node), "asymmetric", "floor")
    fixed = node.numbers("scales") or None
    if node.has("height_scale"):
        fixed = [1.0, 1.0, node.number("height_scale"), node.number("width_scale")]

    def run(given: Tensor, scales: Tensor | None = None) -> Tensor:
        chosen = fixed if fixed is not None else _floats(scales)
        axes = [_scaled(size, scale) for size, scale in zip(given.shape, chosen, strict=True)]
        return resized(given, dict(enumerate(axes)), how, 0.0)

    return run


@operator("Resize", since=10, host=(1, 2, 3), quantised="itself")
def resize(node: Node) -> Call:
    if node.opset < 11:
        call = upsample(node)
        return lambda given, scales: _kept(lambda values: call(values, scales), given)
    how = Resampling(
        _mode(node),
        node.text("coordinate_transformation_mode", "half_pixel"),
        node.text("nearest_mode", "round_prefer_floor"),
        node.number("cubic_coeff_a", -0.75),
        bool(node.integer("exclude_outside")),
        bool(node.integer("antialias")),
    )
    fill, policy = node.number("extrapolation_value"), node.text("keep_aspect_ratio_policy", "stretch")
    known = [node.constant(place) for place in range(4)]
    known_axes = node.integers("axes") if node.has("axes") else None

    def run(given: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
        held = given.values if isinstance(given, Quantised) else given
        chosen = [axis % held.ndim for axis in known_axes] if known_axes is not None else list(range(held.ndim))
        own = [held.shape[axis] for axis in chosen]
        parts = [known[place] if known[place] is not None else value for place, value in ((2, scales), (3, sizes))]
        if parts[0] is not None and parts[0].numel():
            axes = [_scaled(size, scale) for size, scale in zip(own, _floats(parts[0]), strict=True)]
        else:
            axes = _sized(own, _integers(parts[1]), policy)
        if how.transform == "tf_crop_and_resize":
            bounds = _floats(roi)
            axes = [
                dataclasses.replace(axis, start=bounds[place], end=bounds[place + len(axes)])
                for place, axis in enumerate(axes)
            ]
        return _kept(lambda values: resized(values, dict(zip(chosen, axes, strict=True)), how, fill), given)

    return run


def _kept(call: Call, given: Any) -> Any:
    """In the type of what is given; integers are rounded towards zero, as ONNX Runtime does."""
    if isinstance(given, Quantised):
        made = call(given.values)
        return Quantised(straight_through(made, made.detach().trunc()), given.element_type)
    if given.is_floating_point():
        return call(given)
    return call(given.float()).trunc().to(given.dtype)


def _mode(node: Node) -> str:
    found = node.text("mode", "nearest")
    return "linear" if found in ("bilinear", "trilinear") else found


def _floats(value: Any) -> list[float]:
    return [float(number) for number in value.reshape(-1).tolist()]


def _integers(value: Any) -> list[int]:
    return [int(number) for number in value.reshape(-1).tolist()]


def _scaled(size: int, scale: float) -> Axis:
    return Axis(size, math.floor(size * scale), scale)


def _sized(own: list[int], wanted: list[int], policy: str) -> list[Axis]:
    ratios = [made / size for size, made in zip(own, wanted, strict=True)]
    if policy == "stretch":
        return [Axis(size, made, ratio) for size, made, ratio in zip(own, wanted, ratios, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [Axis(size, math.floor(size * scale + 0.5), scale) for size in own]


def resized(given: Tensor, axes: dict[int, Axis], how: Resampling, fill: float) -> Tensor:
    """A tensor with some of its axes resampled; ``fill`` is for what lies outside a part that is taken."""
    cropped = how.transform == "tf_crop_and_resize"
    changed = {
        place: axis
        for place, axis in axes.items()
        if axis.size != axis.made or axis.scale != 1 or (cropped and (axis.start, axis.end) != (0.0, 1.0))
    }
    direct = _by_torch(given, changed, how)
    if direct is not None:
        return direct
    made = given
    for place, axis in changed.items():
        if how.mode == "nearest":
            made = made.index_select(place, _index(axis, how).to(given.device))
        else:
            mixing = _matrix(axis, how).to(given.device, given.dtype)
            made = (made.movedim(place, -1) @ mixing.T).movedim(-1, place)
    if cropped:
        for place, axis in changed.items():
            where = torch.from_numpy(places(axis, how))
            outside = ((where < 0) | (where > axis.size - 1)).to(given.device)
            made = torch.where(outside.reshape(-1, *[1] * (given.ndim - 1 - place)), fill, made)
    return made


def _by_torch(given: Tensor, axes: dict[int, Axis], how: Resampling) -> Tensor | None:
    """By torch's own interpolation, if it means the same for images."""
    if given.ndim != 4 or not axes or min(axes) < 2 or how.antialias or how.exclude_outside:
        return None
    if any(axis.scale * axis.size != axis.made for axis in axes.values()):
        return None
    sizes = [axes[place].made if place in axes else given.shape[place] for place in (2, 3)]
    if how.mode == "nearest":
        if (how.transform, how.nearest) != ("asymmetric", "floor"):
            return None
        return functional.interpolate(given, sizes)
    corners = how.transform == "align_corners"
    if not corners and how.transform != "half_pixel":
        return None
    if how.mode == "cubic":
        if how.cubic != -0.75:
            return None
        return functional.interpolate(given, sizes, mode="bicubic", align_corners=corners)
    return functional.interpolate(given, sizes, mode="bilinear", align_corners=corners)


@functools.lru_cache(maxsize=64)
def _index(axis: Axis, how: Resampling) -> Tensor:
    with torch.inference_mode(False):  # a kept tensor must be one that gradients can use
        return torch.from_numpy(nearest_places(axis, how))


@functools.lru_cache(maxsize=64)
def _matrix(axis: Axis, how: Resampling) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(weights(axis, how))
