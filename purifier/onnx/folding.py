"""Values in an ONNX graph that do not depend on the images' pixels: shapes, and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference.ops import load_op

from ..foreign_code import Attempt
from .graphs import all_graphs

Array: TypeAlias = np.ndarray[Any, Any]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

SMALL = 64
"""Elements of the largest value that is followed; shapes are far smaller."""
ROUNDS = 4
"""How often shapes and values are inferred from each other."""
FOLDED = {
    *("Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Floor", "Gather", "Greater", "Identity"),
    *("Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "Reshape", "Round", "Slice", "Sqrt", "Squeeze", "Sub", "Sum", "Unsqueeze", "Where"),
}
"""Operators whose result is at most as large as the product of what they are given."""


class Folded:
    """The shapes and small values of a model without weights, whose inputs have fixed sizes."""

    def __init__(self, model: ModelProto) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, Array] = {}
        self.ambiguous: set[str] = set()
        """Names that stand for different values in different graphs; ``values`` has the largest."""
        self._opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        self.model = model
        for _ in range(ROUNDS):
            self._infer()
            before = len(self.values)
            self._fold(self.model.graph)
            if len(self.values) == before:
                break
            self._store()

    def _infer(self) -> None:
        with Attempt():  # a malformed graph has no shapes; whoever opens it says what is wrong
            self.model = onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        for graph in all_graphs(self.model.graph):
            for value in (*graph.input, *graph.value_info, *graph.output):
                tensor = value.type.tensor_type
                if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                    found = tuple(dim.dim_value for dim in tensor.shape.dim)
                    self._keep_shape(value.name, found)
            for stored in graph.initializer:
                self._keep_shape(stored.name, tuple(stored.dims))

    def _keep_shape(self, name: str, shape: tuple[int, ...]) -> None:
        known = self.shapes.get(name)
        if known is None or math.prod(shape) > math.prod(known):  # see _keep
            self.shapes[name] = shape

    def _fold(self, graph: GraphProto) -> None:
        for inner in all_graphs(graph):
            for tensor in inner.initializer:
                self._keep(tensor.name, _array(tensor))
            for node in inner.node:
                if node.domain in ("", "ai.onnx") and node.output:
                    self._keep(node.output[0], self._result(node))

    def _result(self, node: NodeProto) -> Array | None:
        if node.op_type == "Constant":
            return _constant(node)
        if node.op_type in ("Shape", "Size") and node.input:
            shape = self.shapes.get(node.input[0])
            if shape is None:
                return None
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
            return np.array(part if node.op_type == "Shape" else math.prod(shape), dtype=np.int64)
        given = [self.values.get(name) if name else None for name in node.input]
        if node.op_type not in FOLDED or any(
            value is None for value, name in zip(given, node.input, strict=True) if name
        ):
            return None
        return _computed(node, given, self._opset)

    def _keep(self, name: str, value: Array | None) -> None:
        if value is None or value.size > SMALL or not name or value.dtype == object:
            return
        # Graphs inside nodes may use a name twice, for different values: the larger one is the safe guess.
        known = self.values.get(name)
        if known is not None and not np.array_equal(known, value):
            self.ambiguous.add(name)
        if known is None or _product(value) > _product(known):
            self.values[name] = value

    def _store(self) -> None:
        """Make known values constants of the graph, from which the next inference can go on."""
        graph = self.model.graph
        stored = {tensor.name for tensor in graph.initializer}
        kept = [node for node in graph.node if not (len(node.output) == 1 and node.output[0] in self.values)]
        replaced = {name for node in graph.node if len(node.output) == 1 for name in node.output} & set(self.values)
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(self.values[name]), name) for name in sorted(replaced - stored)
        )


def _product(value: Array) -> float:
    return math.prod(float(number) for number in value.reshape(-1))


def _computed(node: NodeProto, given: Iterable[Array | None], opset: int) -> Array | None:
    parameters = {
        "log": lambda *_: None,
        "opsets": {"": opset},
        "verbose": 0,
        "new_ops": None,
        "existing_functions": {},
        "evaluator_cls": None,
    }
    with Attempt(), np.errstate(all="ignore"):  # what onnx cannot compute stays unknown
        return np.asarray(load_op("", node.op_type, opset)(node, parameters).run(*given)[0])
    return None


def _constant(node: NodeProto) -> Array | None:
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return _array(attribute.t)
            case "value_int":
                return np.array(attribute.i, dtype=np.int64)
            case "value_ints":
                return np.array(attribute.ints, dtype=np.int64)
            case "value_float":
                return np.array(attribute.f, dtype=np.float32)
            case "value_floats":
                return np.array(attribute.floats, dtype=np.float32)
    return None


def _array(tensor: TensorProto) -> Array | None:
    elsewhere = tensor.data_location == TensorProto.EXTERNAL
    if elsewhere or tensor.data_type == TensorProto.STRING or math.prod(tensor.dims) > SMALL:
        return None
    with Attempt():  # ONNX Runtime reports tensors whose shape and data disagree
        return numpy_helper.to_array(tensor)
    return None
