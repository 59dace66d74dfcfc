"""Values inside an ONNX graph that can be a classifier's answer although the file does not give them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto, numpy_helper

from ..errors import ClassifierError
from ..foreign_code import Attempt
from ..vocabulary import OutputKind
from .skeleton import skeleton
from .weights import SplitModel

PASSING = ("Cast", "Flatten", "Identity", "LabelEncoder", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that change the form of a label, not the choice."""
CHOOSING = ("ArgMax", "TopK", "ZipMap")
"""Operators after which the number for each class is lost, or in a form that has no gradient."""


def with_inner_output(model: ModelProto, which: int | str | None) -> ModelProto:
    """The model with the value called ``which`` as one more output; ``model`` itself unless that is inside its graph.

    Values inside functions and the bodies of If, Loop and Scan cannot be given.

    Raises
    ------
    ClassifierError
        The type of the value is not known.
    """
    if not isinstance(which, str) or which in [value.name for value in model.graph.output]:
        return model
    if not any(which in node.output for node in model.graph.node):
        return model
    made = ModelProto()
    made.CopyFrom(model)
    made.graph.output.append(_described(model, which))
    return made


def shown_inside(stored: SplitModel, which: int | str | None) -> SplitModel:
    """``with_inner_output`` of a model whose large weights are apart."""
    bare = with_inner_output(stored.bare, which)
    return stored if bare is stored.bare else SplitModel(bare, stored.weights)


def kept_answer(model: ModelProto, answer: str) -> str:
    """The value inside an exported guard's graph whose rows become NaN in the output ``answer``, or ``answer``."""
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    node = makers.get(answer)
    while node is not None and node.op_type == "Where" and node.input[1] in stored:
        with Attempt() as attempt:  # ONNX Runtime reports tensors whose shape and data disagree
            only_nan = bool(np.isnan(numpy_helper.to_array(stored[node.input[1]])).all())
        if attempt.error is not None or not only_nan:
            break
        answer = node.input[2]
        node = makers.get(answer)
    return answer


def inner_advice(model: ModelProto) -> str:
    """``output='scores' gives its logits``, for errors; empty if the file gives all that its graph chooses from."""
    found = list(dict.fromkeys(_inner_answers(model)))
    if not found:
        return ""
    name, kind = found[0]
    if kind == "logits":
        return f"output={name!r} gives the logits inside its graph"
    return f"output={name!r} with output_kind={kind!r} gives the {kind} inside its graph"


def _inner_answers(model: ModelProto) -> Iterator[tuple[str, OutputKind]]:
    """Names of values from which outputs are chosen and that are none themselves, and what they are."""
    makers = {name: node for node in model.graph.node for name in node.output}
    shown = {value.name for value in model.graph.output}
    for output in model.graph.output:
        node = _passed(makers, makers.get(output.name), PASSING)
        if node is None or node.op_type not in CHOOSING:
            continue
        source = node.input[0]
        scale = _passed(makers, makers.get(source), ("Cast", "Identity"))
        if scale is not None and scale.op_type == "Softmax":
            yield from ((scale.input[0], "logits") for _ in range(scale.input[0] not in shown))
        elif source not in shown:
            yield source, "probabilities" if node.op_type == "ZipMap" else "logits"


def _passed(makers: dict[str, NodeProto], node: NodeProto | None, passing: tuple[str, ...]) -> NodeProto | None:
    """The first node, going backwards from ``node``, that is none of ``passing``."""
    while node is not None and node.op_type in passing:
        node = makers.get(node.input[0])
    return node


def _described(model: ModelProto, name: str) -> ValueInfoProto:
    """A value's name, type and sizes, as the file or else shape inference tells them; the number of images is free."""
    bare = skeleton(model)
    with Attempt():  # what cannot be inferred stays unknown
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    known = [value for graph in (bare.graph, model.graph) for value in graph.value_info if value.name == name]
    kind = next((value.type.tensor_type for value in known if value.type.tensor_type.elem_type), None)
    if kind is None:
        raise ClassifierError(
            f"output: the type of the value {name!r} inside the graph is not known; name another, or add it to the "
            "graph's outputs with its type",
            model.graph.name,
        )
    found = onnx.helper.make_tensor_value_info(name, kind.elem_type, None)
    if kind.HasField("shape"):
        sizes = [dim.dim_value or None for dim in kind.shape.dim]
        found = onnx.helper.make_tensor_value_info(name, kind.elem_type, [*[None][: len(sizes)], *sizes[1:]])
    return found
