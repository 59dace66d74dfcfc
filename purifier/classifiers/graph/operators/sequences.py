"""Sequences, which are lists, and optionals, which are None if absent."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TypeProto
from torch import Tensor

from ..node import Node, integers_of
from ..table import Call, operator, simple
from ..values import Value


def _inserted(sequence: list[Value], value: Value, place: Tensor | None = None) -> list[Value]:
    made = list(sequence)
    position = len(made) if place is None else int(place)
    made.insert(position + len(made) if position < 0 else position, value)
    return made


def _without(sequence: list[Value], place: Tensor | None = None) -> list[Value]:
    made = list(sequence)
    del made[-1 if place is None else int(place)]
    return made


simple("SequenceConstruct", lambda *values: list(values), since=11, quantised="itself", shaped=False)
simple("SequenceEmpty", list, since=11, quantised="itself", shaped=False)
simple(
    "SequenceAt", lambda sequence, place: sequence[int(place)], since=11, host=(1,), quantised="itself", shaped=False
)
simple("SequenceInsert", _inserted, since=11, host=(2,), quantised="itself", shaped=False)
simple("SequenceErase", _without, since=11, host=(1,), quantised="itself", shaped=False)
simple(
    "SequenceLength",
    lambda sequence: torch.tensor(len(sequence)),
    since=11,
    differentiable=False,
    quantised="itself",
    shaped=False,
)


@operator("SplitToSequence", since=11, host=(1,), quantised="first", shaped=False)
def split_to_sequence(node: Node) -> Call:
    axis, kept = node.integer("axis"), bool(node.integer("keepdims", 1))

    def run(given: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
        if sizes is None:
            return list(torch.split(given, 1, axis)) if kept else list(given.unbind(axis))
        lengths = integers_of(sizes)
        return list(torch.split(given, lengths[0] if sizes.ndim == 0 else lengths, axis))

    return run


@operator("ConcatFromSequence", since=11, shaped=False)
def concat_from_sequence(node: Node) -> Call:
    axis, new = node.integer("axis"), bool(node.integer("new_axis"))
    return lambda sequence: torch.stack(sequence, axis) if new else torch.cat(sequence, axis)


@operator("Optional", since=15, quantised="itself", shaped=False)
def optional(node: Node) -> Call:
    assert not node.has("type") or isinstance(node.attributes["type"], TypeProto)
    return lambda value=None: value


@operator("ZipMap", domain="ai.onnx.ml", shaped=False)
def zip_map(node: Node) -> Call:
    """For each row, a dict from class to its number."""
    names = [name.decode() for name in node.attributes.get("classlabels_strings", [])]
    classes = names or node.integers("classlabels_int64s")
    return lambda given: [dict(zip(classes, row.unbind(), strict=True)) for row in given]


def _held(value: Any = None) -> Any:
    if value is None:
        raise ValueError("the optional is empty")
    return value


def _is_held(value: Any = None) -> Tensor:
    return torch.tensor(value is not None)


simple("OptionalGetElement", _held, since=15, quantised="itself", shaped=False)
simple("OptionalHasElement", _is_held, since=15, quantised="itself", differentiable=False, shaped=False)
