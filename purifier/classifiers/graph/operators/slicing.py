"""Parts of a tensor, and tensors in another order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..node import Node, integers_of
from ..table import Call, operator


def cut(given: Tensor, axis: int, part: slice) -> Tensor:
    """A slice of one axis, with any step."""
    start, end, step = part.indices(given.shape[axis])
    count = len(range(start, end, step))
    if step > 0:
        found = (
            given.narrow(axis, min(start, given.shape[axis]), 0)
            if not count
            else given.narrow(axis, start, end - start)
        )
        return found if step == 1 else found[(slice(None),) * (axis % given.ndim) + (slice(None, None, step),)]
    if not count:
        return given.narrow(axis, 0, 0)
    last = start + (count - 1) * step
    backwards = given.narrow(axis, last, start - last + 1).flip(axis)
    return backwards[(slice(None),) * (axis % given.ndim) + (slice(None, None, -step),)]


@operator("Slice", host=(1, 2, 3, 4), quantised="first")
def slice_of(node: Node) -> Call:
    if node.opset < 10:
        starts, ends = node.integers("starts"), node.integers("ends")
        axes = node.integers("axes", range(len(starts)))
        old = [(axis, slice(*both)) for axis, *both in zip(axes, starts, ends, strict=True)]
        return lambda given: _cut_all(given, old)
    if all(node.constant(place) is not None for place in range(1, len(node.inputs)) if node.given(place)):
        known = _parts(*[node.constants.get(place) for place in range(1, 5)])
        return lambda given, *_: _cut_all(given, known)
    return lambda given, *bounds: _cut_all(given, _parts(*bounds))


def _cut_all(given: Tensor, parts: list[tuple[int, slice]]) -> Tensor:
    for axis, part in parts:
        given = cut(given, axis, part)
    return given


def _parts(starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> list[tuple[int, slice]]:
    first, last = integers_of(starts), integers_of(ends)
    places = list(range(len(first))) if axes is None else integers_of(axes)
    strides = [1] * len(first) if steps is None else integers_of(steps)
    return [
        (place, slice(start, None if stride < 0 and end < -(2**30) else end, stride))
        for place, start, end, stride in zip(places, first, last, strides, strict=True)
    ]


@operator("CenterCropPad", since=18, host=(1,), quantised="first")
def center_crop_pad(node: Node) -> Call:
    known = node.integers("axes") if node.has("axes") else None

    def run(given: Tensor, shape: Tensor) -> Tensor:
        axes = known if known is not None else range(given.ndim)
        for axis, size in zip(axes, integers_of(shape), strict=True):
            own = given.shape[axis]
            if size < own:
                given = given.narrow(axis, (own - size) // 2, size)
            elif size > own:
                before = (size - own) // 2
                ends = [(0, 0)] * given.ndim
                ends[axis] = (before, size - own - before)
                given = torch.nn.functional.pad(given, [side for pair in reversed(ends) for side in pair])
        return given

    return run


@operator("ReverseSequence", since=10, blind=(1,), quantised="first")
def reverse_sequence(node: Node) -> Call:
    batch, along = node.integer("batch_axis", 1), node.integer("time_axis", 0)

    def run(given: Tensor, lengths: Tensor) -> Tensor:
        size = given.shape[along]
        steps = torch.arange(size, device=given.device)
        ends = lengths.to(given.device).reshape(-1, 1)
        order = torch.where(steps < ends, ends - 1 - steps, steps)  # (batch, time)
        sizes = [1] * given.ndim
        sizes[batch], sizes[along] = given.shape[batch], size
        index = (order if batch < along else order.T).reshape(sizes).expand(given.shape)
        return given.gather(along, index)

    return run
