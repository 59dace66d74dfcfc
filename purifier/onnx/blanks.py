"""No answer for bad images inside an ONNX graph, as ``purifier.rejection.blanks`` gives none in torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper

Rows: TypeAlias = Literal["yes", "no", "unknown"]

_FLOATS = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16, ir.DataType.DOUBLE: np.float64}
_SIGNED = {ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64}
_UNSIGNED = {ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}
NAMING = {*_SIGNED, *_UNSIGNED, ir.DataType.STRING}
"""Types of labels."""
PLACE = "/bad_pixels/"
"""Part of the names of all nodes added here."""
NAMELESS = ("Shape", "Size")
"""Operators whose result depends on no value of what they are given."""

SPREADING = ("ZipMap", "SplitToSequence")
"""Operators that make a tensor into something else, so that the tensor is changed instead."""


def blank_outputs(graph: ir.Graph, bad: ir.Value, image: ir.Value, prefix: str) -> None:
    """Give bad images no answer, in place: NaN in each float output, -1 or "" in each label, in their rows.

    Outputs keep their names, positions, types and shapes. One that does not depend on the pixels, has no row per image,
    or is boolean stays as it is, and so does one that is no tensor, unless one of ``SPREADING`` makes it.

    Parameters
    ----------
    bad
        Which images are bad, bool (N,).
    image
        The graph's input with the images.
    prefix
        Prefix of the names of new values.
    """
    batch = None if image.shape is None else image.shape[0]
    nodes = _Nodes(graph, f"{prefix.rstrip('/')}{PLACE}")
    for place, value in enumerate(graph.outputs):
        maker = value.producer()
        if maker is None or not depends_on(value, image):
            continue
        if maker.op_type in SPREADING:
            inner = maker.inputs[0]
            kind = ir.DataType.FLOAT if maker.op_type == "ZipMap" else value.dtype
            if inner is not None and _blank(kind) is not None:
                maker.replace_input_with(0, _blanked(nodes, inner, bad, kind, batch))
        elif isinstance(value.type, ir.TensorType) and rows(value, batch) != "no" and _blank(value.dtype) is not None:
            made = _blanked(nodes, value, bad, value.dtype, batch)
            made.type, made.shape = value.type, value.shape
            name, value.name = value.name, f"{nodes.prefix}{value.name}"
            made.name = name
            graph.outputs[place] = made
    graph.extend(nodes.made)


def depends_on(value: ir.Value, source: ir.Value) -> bool:
    """Whether a value is computed from another, and not only from its shape."""
    waiting, seen = [value], {id(value)}
    while waiting:
        value = waiting.pop()
        if value is source:
            return True
        maker = value.producer()
        if maker is None or maker.op_type in NAMELESS:
            continue
        for other in _read_by(maker):
            if id(other) not in seen:
                seen.add(id(other))
                waiting.append(other)
    return False


def rows(value: ir.Value, batch: Any) -> Rows:
    """Whether a value has a row for each image, as far as its declared shape tells."""
    if value.shape is None:
        return "unknown"
    if len(value.shape) == 0:
        return "no"
    first = value.shape[0]
    if isinstance(first, int) and (isinstance(batch, int) or batch is not None):
        return "yes" if first == batch else "no"
    symbols = [size.value if isinstance(size, ir.SymbolicDim) else None for size in (first, batch)]
    return "yes" if symbols[0] is not None and symbols[0] == symbols[1] else "unknown"


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """What a node is given, and what the nodes in its bodies (If, Loop, Scan) are given or read from outside."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            bodies = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else attribute.value
            for body in bodies:
                yield from body.outputs
                for inner in body:
                    yield from _read_by(inner)


class _Nodes:
    """Makes nodes with names, to be added to a graph together."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self.made: list[ir.Node] = []

    def __call__(self, kind: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes, name=f"{self.prefix}{kind}_{len(self.made)}")
        node.outputs[0].name = f"{node.name}_output"
        self.made.append(node)
        return node.outputs[0]

    def stored(self, array: np.ndarray[Any, Any]) -> ir.Value:
        name = f"{self.prefix}stored_{len(self.graph.initializers)}"
        value = ir.Value(name=name, const_value=ir.tensor(numpy_helper.from_array(array, name)))
        self.graph.initializers.add(value)
        return value


def _blanked(nodes: _Nodes, value: ir.Value, bad: ir.Value, kind: ir.DataType | None, batch: Any) -> ir.Value:
    """A value with no answer in the rows of bad images."""
    assert kind is not None
    if rows(value, batch) == "yes":
        assert value.shape is not None
        inner = np.arange(1, len(value.shape))
        shown = nodes("Unsqueeze", [bad, nodes.stored(inner)]) if len(inner) else bad
    else:
        shown = _shown_in(nodes, value, bad)
    blank = _blank(kind)
    assert blank is not None
    if kind in (*_FLOATS, ir.DataType.INT64, ir.DataType.STRING):
        return nodes("Where", [shown, nodes.stored(blank), value])
    # ONNX Runtime has no Where for most integers.
    wide = nodes("Cast", [value], to=ir.DataType.INT64)
    return nodes("Cast", [nodes("Where", [shown, nodes.stored(blank), wide])], to=kind)


def _shown_in(nodes: _Nodes, value: ir.Value, bad: ir.Value) -> ir.Value:
    """``bad`` in a shape that fits a value of unknown shape; rows beyond the images are not bad."""
    zero, one, first, end = (nodes.stored(np.array(of)) for of in (0, 1, [0], [np.iinfo(np.int64).max]))
    single = nodes.stored(np.array([1]))
    shape = nodes("Shape", [value])
    head = nodes("Slice", [shape, first, single])
    # A value without dimensions has one row.
    places = nodes("Range", [zero, nodes("ReduceProd", [head], keepdims=0), one])
    longer = nodes("Concat", [bad, nodes.stored(np.array([False]))], axis=0)
    found = nodes("Gather", [longer, nodes("Min", [places, nodes("Shape", [bad])])])
    ones = nodes("ConstantOfShape", [nodes("Shape", [shape])], value=ir.tensor(np.array([1])))
    return nodes("Reshape", [found, nodes("Concat", [head, nodes("Slice", [ones, single, end])], axis=0)])


def _blank(kind: ir.DataType | None) -> np.ndarray[Any, Any] | None:
    """What stands for no answer; None for types that have nothing for it."""
    if kind in _FLOATS:
        return np.array(np.nan, dtype=_FLOATS[kind])
    if kind in _SIGNED:
        return np.array(-1)
    if kind in _UNSIGNED:
        largest = np.iinfo(kind.numpy()).max
        return np.array(largest, dtype=np.uint64).astype(np.int64)
    return np.array("", dtype=object) if kind == ir.DataType.STRING else None
