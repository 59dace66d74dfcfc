"""Pad in all its modes, and windows put back together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node, integers_of
from ..table import MICROSOFT, Call, operator
from ..types import WIDENED
from ..values import Quantised


def padded(given: Tensor, pads: list[int], axes: list[int] | None, mode: str, fill: float) -> Tensor:
    """``pads`` are all beginnings, then all ends; negative ones cut. Modes constant, edge, reflect and wrap."""
    places = list(range(given.ndim)) if axes is None else [axis % given.ndim for axis in axes]
    ends = {axis: (pads[place], pads[place + len(places)]) for place, axis in enumerate(places)}
    for axis, (before, after) in ends.items():  # cut first
        start, stop = max(0, -before), given.shape[axis] - max(0, -after)
        if start or stop < given.shape[axis]:
            given = given.narrow(axis, start, max(0, stop - start))
    ends = {axis: (max(0, before), max(0, after)) for axis, (before, after) in ends.items()}
    if mode == "constant":
        sides = [side for axis in reversed(range(given.ndim)) for side in ends.get(axis, (0, 0))]
        return functional.pad(given, sides, value=fill) if any(sides) else given
    for axis, (before, after) in ends.items():
        if before or after:
            given = given.index_select(axis, _sources(given.shape[axis], before, after, mode).to(given.device))
    return given


def _sources(size: int, before: int, after: int, mode: str) -> Tensor:
    """Which elements of an axis stand where after padding."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if size == 1:
        return torch.zeros_like(places)
    period = 2 * (size - 1)
    folded = places % period
    return torch.where(folded < size, folded, period - folded)


@operator("Pad", host=(1, 2, 3), quantised="itself")
def pad(node: Node) -> Call:
    mode = node.text("mode", "constant")
    if node.opset < 11:
        old = node.integers("pads") or node.integers("paddings")
        value = node.number("value")
        return lambda given: _on_values(given, old, None, mode, value)
    pads, axes = node.known_integers(1), node.known_integers(3)

    def run(given: Any, amounts: Any, value: Any = None, places: Any = None) -> Any:
        fill = 0.0 if value is None else (value.values if isinstance(value, Quantised) else value).item()
        sizes = pads if pads is not None else integers_of(amounts)
        chosen = axes if axes is not None else None if places is None else integers_of(places)
        return _on_values(given, sizes, chosen, mode, fill)

    return run


def _on_values(given: Any, pads: list[int], axes: list[int] | None, mode: str, fill: float) -> Any:
    if isinstance(given, Quantised):
        return Quantised(padded(given.values, pads, axes, mode, fill), given.element_type)
    if given.dtype in WIDENED:
        return padded(given.long(), pads, axes, mode, fill).to(given.dtype)
    return padded(given, pads, axes, mode, fill)


@operator("Pad", domain=MICROSOFT, host=(1, 2, 3), quantised="itself")
def microsoft_pad(node: Node) -> Call:
    return pad(dataclasses.replace(node, opset=18))


@operator("Col2Im", since=18, host=(1, 2))
def columns_to_image(node: Node) -> Call:
    def run(given: Tensor, image_shape: Tensor, block_shape: Tensor) -> Tensor:
        image, block = integers_of(image_shape), integers_of(block_shape)
        rank = len(image)
        dilations, strides = node.integers("dilations", [1] * rank), node.integers("strides", [1] * rank)
        pads = node.integers("pads", [0] * (2 * rank))
        full = [size + pads[place] + pads[place + rank] for place, size in enumerate(image)]
        grid = torch.zeros((), dtype=torch.int64)
        for place in range(rank):  # where in the padded image each element of each block lies
            steps = torch.arange(0, full[place] - dilations[place] * (block[place] - 1), strides[place])
            where = torch.arange(block[place])[:, None] * dilations[place] + steps
            outer = [1] * (2 * rank)
            outer[place], outer[place + rank] = where.shape
            grid = grid * full[place] + where.reshape(outer)
        count, channels = given.shape[0], given.shape[1] // math.prod(block)
        index = grid.reshape(-1).to(given.device)
        flat = given.reshape(count, channels, -1)
        made = (
            flat.new_zeros(count, channels, math.prod(full)).index_add(2, index, flat).reshape(count, channels, *full)
        )
        for place, length in enumerate(image):
            made = made.narrow(place + 2, pads[place], length)
        return made

    return run
