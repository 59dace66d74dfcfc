"""Elements by index."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator


def wrapped(index: Tensor, size: int) -> Tensor:
    """Indices as int64, counted from the beginning."""
    found = index.long()
    return torch.where(found < 0, found + size, found)


class Prepared:
    """What is made of an index for a shape, remembered while the same tensor comes again, as one in the file does."""

    def __init__(self, make: Callable[[Tensor, torch.Size], Any]) -> None:
        self._make = make
        self._known: tuple[weakref.ref[Tensor], torch.Size, Any] | None = None

    def __call__(self, index: Tensor, shape: torch.Size) -> Any:
        known = self._known
        if known is not None and known[0]() is index and known[1] == shape:
            return known[2]
        made = self._make(index, shape)
        if not torch.is_inference_mode_enabled():
            self._known = weakref.ref(index), shape, made
        return made


@operator("Gather", blind=(1,), quantised="first")
def gather(node: Node) -> Call:
    axis, known = node.integer("axis"), node.constant(1)
    if known is not None and known.ndim == 0:
        place = int(known)
        return lambda given, _: given.select(axis, place)
    steps = _as_range(known)
    if steps is not None:
        return lambda given, _: given.narrow(axis, *steps)

    prepare = Prepared(lambda index, shape: wrapped(index, shape[axis]).reshape(-1))

    def run(given: Tensor, index: Tensor) -> Tensor:
        if index.ndim == 0 and index.device.type == "cpu":
            return given.select(axis, int(index))
        start = axis % given.ndim
        found = given.index_select(start, prepare(index, given.shape))
        return found.reshape(*given.shape[:start], *index.shape, *given.shape[start + 1 :])

    return run


def _as_range(index: Tensor | None) -> tuple[int, int] | None:
    """Start and length, if known indices are consecutive, so that no copy is needed."""
    if index is None or index.ndim != 1 or not index.numel() or int(index[0]) < 0:
        return None
    start, count = int(index[0]), index.numel()
    return (start, count) if torch.equal(index.long(), torch.arange(start, start + count)) else None


@operator("GatherElements", since=11, blind=(1,), quantised="first")
def gather_elements(node: Node) -> Call:
    axis = node.integer("axis")
    prepare = Prepared(lambda index, shape: wrapped(index, shape[axis]))
    return lambda given, index: given.gather(axis, prepare(index, given.shape))


def split_index(index: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """Indices (..., k) as one tensor for each of the first k axes of a shape, counted from the beginning."""
    return tuple(wrapped(part, size) for part, size in zip(index.unbind(-1), shape, strict=False))


@operator("GatherND", since=11, blind=(1,), quantised="first")
def gather_nd(node: Node) -> Call:
    shared = node.integer("batch_dims")
    prepare = Prepared(split_index)

    def run(given: Tensor, index: Tensor) -> Tensor:
        if not shared:
            return given[prepare(index, given.shape)]
        batch = given.shape[:shared]
        flat = given.reshape(-1, *given.shape[shared:])
        places = index.reshape(len(flat), *index.shape[shared:])
        rows = torch.arange(len(flat), device=given.device).reshape(-1, *[1] * (places.ndim - 2))
        found = flat[(rows, *split_index(places, flat.shape[1:]))]
        return found.reshape(*batch, *found.shape[1:])

    return run


@operator("OneHot", since=9, host=(1,), blind=(0, 1))
def one_hot(node: Node) -> Call:
    axis = node.integer("axis", -1)

    def run(index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        size = int(depth)
        places = index.long()
        inside = (places >= -size) & (places < size)
        places = torch.where(places < 0, places + size, places)
        classes = torch.arange(size, device=index.device)
        hits = (places.unsqueeze(-1) == classes) & inside.unsqueeze(-1)
        return torch.where(hits, values[1], values[0]).movedim(-1, axis)

    return run


@operator("NonZero", since=9, differentiable=False, shaped=False)
def non_zero(node: Node) -> Call:
    return lambda given: given.nonzero().T.contiguous()


@operator("Compress", since=9, blind=(1,), quantised="first", shaped=False)
def compress(node: Node) -> Call:
    axis = node.integer("axis") if node.has("axis") else None

    def run(given: Tensor, condition: Tensor) -> Tensor:
        places = condition.reshape(-1).nonzero().reshape(-1)
        return given.reshape(-1)[places] if axis is None else given.index_select(axis, places)

    return run


@operator("ArrayFeatureExtractor", domain="ai.onnx.ml", blind=(1,))
def array_feature_extractor(node: Node) -> Call:
    def run(given: Tensor, index: Tensor) -> Tensor:
        rows = given.reshape(-1, given.shape[-1]) if given.ndim > 1 else given[None]
        found = rows[:, index.reshape(-1).long()]
        return found if given.ndim <= 1 else found.reshape(*given.shape[:-1], math.prod(index.shape))

    return run
