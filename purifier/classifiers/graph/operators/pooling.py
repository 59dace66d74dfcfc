"""Poolings over windows and over whole images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node, integers_of
from ..table import Call, operator, simple
from .convolution import CONVOLUTIONS
from .windows import Windows, is_symmetric, surrounded

MAXIMA: dict[int, Callable[..., Any]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
MEANS: dict[int, Callable[..., Tensor]] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@operator("MaxPool", quantised="first")
def max_pool(node: Node) -> Call:
    windows = Windows.read(node, node.integers("kernel_shape"))
    ceil, by_column = bool(node.integer("ceil_mode")), bool(node.integer("storage_order"))
    places = len(node.outputs) > 1 and bool(node.outputs[1])
    rank = len(windows.kernel)
    pool = MAXIMA[rank]
    plain = windows.auto_pad in ("NOTSET", "VALID") and not places and not ceil
    fixed = windows.pads_for([]) if plain else []
    if plain and is_symmetric(fixed) and all(2 * p <= k for p, k in zip(fixed, windows.kernel, strict=False)):
        padding = fixed[:rank]

        def direct(images: Tensor) -> Any:
            values = images if images.is_floating_point() else images.double()
            return pool(values, windows.kernel, windows.strides, padding, windows.dilations).to(images.dtype)

        return direct

    def run(images: Tensor) -> Any:
        values = images if images.is_floating_point() else images.double()
        pads = windows.pads_for(images.shape[2:])
        counts = windows.counts(images.shape[2:], pads, ceil=ceil)
        framed = _framed(values, windows, pads, counts, -math.inf)
        if not places:
            return pool(framed, windows.kernel, windows.strides, 0, windows.dilations).to(images.dtype)
        best, index = pool(framed, windows.kernel, windows.strides, 0, windows.dilations, return_indices=True)
        return best.to(images.dtype), _places(index, images.shape, framed.shape, pads, by_column)

    return run


def _framed(values: Tensor, windows: Windows, pads: list[int], counts: list[int], fill: float) -> Tensor:
    """An image with a border, cut or extended to where the last windows end."""
    rank = len(counts)
    ends = [
        (count - 1) * stride + extent - size - before
        for count, stride, extent, size, before in zip(
            counts, windows.strides, windows.extents, values.shape[2:], pads, strict=False
        )
    ]
    return surrounded(values, pads[:rank] + ends, fill)


def _places(index: Tensor, shape: torch.Size, framed: torch.Size, pads: list[int], by_column: bool) -> Tensor:
    """Positions in the whole input tensor, from those in planes with a border."""
    along, rest = [], index
    for size in reversed(framed[2:]):
        along.append(rest % size)
        rest = rest // size
    along = [part - pads[axis] for axis, part in enumerate(reversed(along))]
    sizes = list(shape[2:])
    if by_column:
        along, sizes = along[::-1], sizes[::-1]
    planes = torch.arange(shape[0] * shape[1], device=index.device).reshape(*shape[:2], *[1] * len(sizes))
    found = planes
    for part, size in zip(along, sizes, strict=True):
        found = found * size + part
    return found


@operator("AveragePool", quantised="converts")
def average_pool(node: Node) -> Call:
    windows = Windows.read(node, node.integers("kernel_shape"))
    ceil, with_border = bool(node.integer("ceil_mode")), bool(node.integer("count_include_pad"))
    rank = len(windows.kernel)
    undilated = all(dilation == 1 for dilation in windows.dilations)
    if windows.auto_pad in ("NOTSET", "VALID") and not ceil and undilated:
        pads = windows.pads_for([])
        if is_symmetric(pads) and all(2 * p <= k for p, k in zip(pads, windows.kernel, strict=False)):
            mean, padding = MEANS[rank], pads[:rank]
            return lambda images: mean(images, windows.kernel, windows.strides, padding, False, with_border)

    def run(images: Tensor) -> Tensor:
        pads = windows.pads_for(images.shape[2:])
        counts = windows.counts(images.shape[2:], pads, ceil=ceil)
        ones = images.new_ones(1, 1, *images.shape[2:])
        if with_border:
            ones = surrounded(ones, pads, 1.0)
        none = [0] * len(pads)
        weights = _sums(_framed(ones, windows, none if with_border else pads, counts, 0.0), windows)
        return _sums(_framed(images, windows, pads, counts, 0.0), windows) / weights

    return run


def _sums(images: Tensor, windows: Windows) -> Tensor:
    """The sum in every window."""
    planes = images.reshape(-1, 1, *images.shape[2:])
    ones = images.new_ones(1, 1, *windows.kernel)
    summed = CONVOLUTIONS[len(windows.kernel)](planes, ones, None, windows.strides, 0, windows.dilations)
    return summed.reshape(*images.shape[:2], *summed.shape[2:])


@operator("LpPool", since=2)
def lp_pool(node: Node) -> Call:
    windows = Windows.read(node, node.integers("kernel_shape"))
    ceil, power = bool(node.integer("ceil_mode")), node.number("p", 2)

    def run(images: Tensor) -> Tensor:
        pads = windows.pads_for(images.shape[2:])
        counts = windows.counts(images.shape[2:], pads, ceil=ceil)
        return _sums(_framed(images.abs().pow(power), windows, pads, counts, 0.0), windows).pow(1 / power)

    return run


def _image_axes(images: Tensor) -> list[int]:
    return list(range(2, images.ndim))


def _global_mean(images: Tensor) -> Tensor:
    return images.mean(_image_axes(images), keepdim=True)


def _global_max(images: Tensor) -> Tensor:
    return images.amax(_image_axes(images), keepdim=True)


simple("GlobalAveragePool", _global_mean)
simple("GlobalMaxPool", _global_max, quantised="first")


@operator("GlobalLpPool")
def global_lp_pool(node: Node) -> Call:
    power = node.number("p", 2)
    return lambda images: torch.linalg.vector_norm(images, power, _image_axes(images), keepdim=True)


@operator("MaxUnpool", since=9, host=(2,), blind=(1,))
def max_unpool(node: Node) -> Call:
    windows = Windows.read(node, node.integers("kernel_shape"))
    known = node.known_integers(2)

    def run(values: Tensor, index: Tensor, shape: Tensor | None = None) -> Tensor:
        rank = len(windows.kernel)
        inferred = [
            (size - 1) * stride + extent - windows.pads[axis] - windows.pads[axis + rank]
            for axis, (size, stride, extent) in enumerate(
                zip(values.shape[2:], windows.strides, windows.extents, strict=True)
            )
        ]
        own = [*values.shape[:2], *inferred]
        made = values.new_zeros(math.prod(own)).scatter(0, index.reshape(-1), values.reshape(-1)).reshape(own)
        wanted = known if known is not None else None if shape is None else integers_of(shape)
        if wanted is None or wanted == own:
            return made
        return surrounded(made, [0] * rank + [size - had for size, had in zip(wanted[2:], own[2:], strict=True)])

    return run
