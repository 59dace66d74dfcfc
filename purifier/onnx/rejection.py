"""Rejection inside an ONNX graph: replace the logits of rejected images."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from ..errors import ClassifierError
from ..rejection.policy import Rejection

FLOATS = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.DOUBLE: np.float64,
}


def replace_logits(
    graph: ir.Graph, rejected: ir.Value, classes: ir.Value | None, rejection: Rejection, prefix: str
) -> None:
    """Add a Where node after the classifier's logits, in place; the output keeps its name, position, type and shape.

    Parameters
    ----------
    rejected
        Which images are rejected, bool (N,).
    classes
        The purifier's log-probabilities (N, K), float32, if rejected images are reclassified.
    prefix
        Prefix of the names of new values.

    Raises
    ------
    ClassifierError
        No output can be logits, or it does not declare its number of classes and ``rejection`` needs it.
    ConfigError
        The number of classes does not fit ``rejection``.
    """
    place = logits_among(graph)
    logits = graph.outputs[place]
    kind, count = logits.dtype, None if logits.shape is None else logits.shape[1]
    assert kind in FLOATS
    known = count if isinstance(count, int) else None
    axis = _stored(graph, f"{prefix}rejection/axis", np.array([1]))
    column = ir.node("Unsqueeze", [rejected, axis], name=f"{prefix}rejection/column")
    nodes = [column]
    if classes is not None:
        own = None if classes.shape is None else classes.shape[1]
        if known is not None and isinstance(own, int):
            rejection.check_classes(own, known)
        cast = ir.node("Cast", [classes], {"to": kind}, name=f"{prefix}rejection/cast")
        nodes.append(cast)
        row = cast.outputs[0]
        row.type = ir.TensorType(ir.DataType(kind))
    elif rejection.abstain is not None and known is None:
        raise ClassifierError(
            f"the classifier does not declare how many classes its output {logits.name!r} has, which abstain="
            f"{rejection.abstain} needs; leave abstain out (NaN), or export the classifier with that size",
            graph.name or "",
        )
    else:
        row = _stored(graph, f"{prefix}rejection/row", np.array([rejection.row(known or 1)], dtype=FLOATS[kind]))
    where = ir.node("Where", [column.outputs[0], row, logits], name=f"{prefix}rejection/where")
    graph.extend([*nodes, where])
    replaced = where.outputs[0]
    replaced.name, replaced.type, replaced.shape = logits.name, logits.type, logits.shape
    logits.name = f"{prefix}rejection/{logits.name}"
    for node in nodes:
        node.outputs[0].name = f"{node.name}_output"
    graph.outputs[place] = replaced


def logits_among(graph: ir.Graph) -> int:
    """The position of the logits among a graph's outputs: the one called ``logits``, else the first floats (N, K).

    Raises
    ------
    ClassifierError
        There are none.
    """
    floats = [
        place
        for place, value in enumerate(graph.outputs)
        if value.dtype in FLOATS and value.producer() is not None and (value.shape is None or len(value.shape) == 2)
    ]
    if not floats:
        got = ", ".join(f"{value.name!r} {value.dtype} {value.shape}" for value in graph.outputs)
        raise ClassifierError(
            "no output of the classifier can be logits to replace for rejected images: expected floats (N, K), got "
            f"{got}; use on_reject='flag'",
            graph.name or "",
        )
    named = [place for place in floats if graph.outputs[place].name == "logits"]
    declared = [place for place in floats if graph.outputs[place].shape is not None]
    return (named or declared or floats)[0]


def replaced_output(model: ModelProto) -> str:
    """The name of a classifier's output whose rows are replaced for rejected images."""
    graph = ir.from_proto(model).graph
    return graph.outputs[logits_among(graph)].name or ""


def _stored(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.initializers.add(value)
    return value
