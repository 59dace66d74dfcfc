"""Rejection inside an ONNX graph: replace the answers for rejected images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from ..errors import ClassifierError
from ..output import LOGITS, SHAPES, Entry, Output
from ..rejection.policy import Rejection, replaceable_ranks
from .graphs import set_aside_maps

FLOATS = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.DOUBLE: np.float64,
}

NAMING = {
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.STRING),
}
"""Types of labels."""


def replace_answer(
    graph: ir.Graph,
    rejected: ir.Value,
    own: ir.Value | None,
    rejection: Rejection,
    prefix: str,
    output: Output = LOGITS,
) -> None:
    """Add a Where node after the classifier's answer, in place; the output keeps its name, position, type and shape.

    Parameters
    ----------
    rejected
        Which images are rejected, bool (N,).
    own
        The purifier's own answers, float32 (N, K), or (N, 1) if binary, if rejected images are reclassified.
    prefix
        Prefix of the names of new values.

    Raises
    ------
    ClassifierError
        No output can be the answer, or it does not declare its number of classes and ``rejection`` needs it.
    ConfigError
        The number of classes does not fit ``rejection``.
    """
    place = replaceable_answer(graph, output)
    answer = graph.outputs[place]
    kind, flat = answer.dtype, answer.shape is not None and len(answer.shape) == 1
    count = None if answer.shape is None or flat else answer.shape[1]
    assert kind in FLOATS
    known = 1 if output.binary else count if isinstance(count, int) else None
    nodes = []
    if not flat:
        axis = _stored(graph, f"{prefix}rejection/axis", np.array([1]))
        nodes.append(ir.node("Unsqueeze", [rejected, axis], name=f"{prefix}rejection/column"))
    column = nodes[0].outputs[0] if nodes else rejected
    if own is not None:
        classes = None if own.shape is None else own.shape[1]
        if known is not None and isinstance(classes, int):
            rejection.check_classes(classes, known)
        row = own
        if flat:
            whole = _stored(graph, f"{prefix}rejection/whole", np.array([-1]))
            nodes.append(ir.node("Reshape", [own, whole], name=f"{prefix}rejection/flat"))
            row = nodes[-1].outputs[0]
        nodes.append(ir.node("Cast", [row], {"to": kind}, name=f"{prefix}rejection/cast"))
        row = nodes[-1].outputs[0]
        row.type = ir.TensorType(ir.DataType(kind))
    elif rejection.abstain is not None and known is None:
        raise ClassifierError(
            f"the classifier does not declare how many classes its output {answer.name!r} has, which abstain="
            f"{rejection.abstain} needs; leave abstain out (NaN), or export the classifier with that size",
            graph.name or "",
        )
    else:
        values = np.array([rejection.row(known or 1, output)], dtype=FLOATS[kind])
        row = _stored(graph, f"{prefix}rejection/row", values[0] if flat else values)
    where = ir.node("Where", [column, row, answer], name=f"{prefix}rejection/where")
    graph.extend([*nodes, where])
    replaced = where.outputs[0]
    replaced.name, replaced.type, replaced.shape = answer.name, answer.type, answer.shape
    answer.name = f"{prefix}rejection/{answer.name}"
    for node in nodes:
        node.outputs[0].name = f"{node.name}_output"
    graph.outputs[place] = replaced


def replaceable_answer(graph: ir.Graph, output: Output) -> int:
    """The position of the answer among a graph's outputs, after checking that its rows can be replaced.

    Raises
    ------
    ClassifierError
        No output can be the answer, several can and none is chosen, or a binary one has no declared shape.
    """
    if output.labels:
        raise ClassifierError(
            "a label cannot be replaced for rejected images; use on_reject='flag', which replaces nothing, or an "
            "output with logits (--output)",
            graph.name or "",
        )
    try:
        place = _answer_among(graph.outputs, output)
    except ClassifierError as error:
        raise ClassifierError(f"{error}; or use on_reject='flag', which replaces nothing", graph.name or "") from error
    value = graph.outputs[place]
    if value.producer() is None or (value.shape is not None and len(value.shape) not in replaceable_ranks(output)):
        raise ClassifierError(
            f"the rows of the classifier's output {_described(value)} cannot be replaced for rejected images: expected "
            f"{SHAPES[output.kind]}, computed by the graph; use on_reject='flag'",
            graph.name or "",
        )
    if output.binary and value.shape is None:
        raise ClassifierError(
            f"the classifier does not declare the shape of its output {value.name!r}, which may be (N,) or (N, 1); use "
            "on_reject='flag', or export the classifier with that shape",
            graph.name or "",
        )
    return place


def answer_name(model: ModelProto, output: Output) -> str:
    """The name of the output that is a classifier's answer; ``Output.choose`` says which errors it raises."""
    outputs = ModelProto()
    outputs.graph.output.extend(model.graph.output)
    set_aside_maps(outputs)
    values = [ir.from_proto(value) for value in outputs.graph.output]
    return values[_answer_among(values, output)].name or ""


def _answer_among(outputs: Sequence[ir.Value], output: Output) -> int:
    entries = []
    for value in outputs:
        sizes = None
        if value.shape is not None:
            sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
        text = f"{value.dtype} {value.shape}"
        entries.append(Entry(value.name, value.dtype in FLOATS, sizes, text, value.dtype in NAMING))
    return output.choose(entries)


def _described(value: ir.Value) -> str:
    return f"{value.name!r} {value.dtype} {value.shape}"


def _stored(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.initializers.add(value)
    return value
