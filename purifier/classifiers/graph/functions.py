"""Operators that are written as functions of other operators, in the model or in the ONNX standard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from ...foreign_code import Attempt


class InferredTypes:
    """The types of a model's values, inferred when first asked for."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._types: dict[str, TypeProto] | None = None

    def of(self, name: str) -> TypeProto:
        """The type of a value; float32 if it is not known, an empty type for an absent value."""
        if not name:
            return TypeProto()
        if self._types is None:
            self._types = {}
            with Attempt():  # types that cannot be inferred are guessed
                graph = onnx.shape_inference.infer_shapes(self._model).graph
                self._types.update(
                    (value.name, value.type) for value in (*graph.input, *graph.value_info, *graph.output)
                )
                for stored in graph.initializer:
                    kind = onnx.helper.make_tensor_type_proto(stored.data_type, list(stored.dims))
                    self._types.setdefault(stored.name, kind)
        return self._types.get(name) or onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, None)


def standard_function(node: NodeProto, opset: int, types: InferredTypes) -> FunctionProto | None:
    """The body that the ONNX standard gives for an operator, if it does."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    with Attempt():  # onnx has no entry for the operator
        schema: Any = onnx.defs.get_schema(node.op_type, opset, domain)  # its stubs lack functions
        if schema.has_function:
            return _with_defaults(schema)
        if schema.has_context_dependent_function:
            given = [types.of(name).SerializeToString() for name in node.input]
            versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
            body = schema.get_context_dependent_function_with_opset_version(
                max(versions, default=schema.since_version), node.SerializeToString(), given
            )
            return FunctionProto.FromString(body) if body else None
    return None


def _with_defaults(schema: Any) -> FunctionProto:
    """An operator's body with the attributes that it has where a node gives none."""
    body = FunctionProto()
    body.CopyFrom(schema.function_body)
    known = {attribute.name for attribute in body.attribute_proto}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name and name not in known:
            body.attribute_proto.add().CopyFrom(attribute.default_value)
    return body


def with_attributes(node: NodeProto, given: Mapping[str, AttributeProto]) -> NodeProto:
    """A node of a function, with references to the function's attributes replaced by what the caller gives."""
    if not _refers(node):
        return node
    made = NodeProto()
    made.CopyFrom(node)
    _fill(made, given)
    return made


def _refers(node: NodeProto) -> bool:
    return any(
        attribute.ref_attr_name or any(_refers(inner) for graph in _graphs(attribute) for inner in graph.node)
        for attribute in node.attribute
    )


def _fill(node: NodeProto, given: Mapping[str, AttributeProto]) -> None:
    attributes = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name in given:
                filled = AttributeProto()
                filled.CopyFrom(given[attribute.ref_attr_name])
                filled.name = attribute.name
                attributes.append(filled)
            continue
        for graph in _graphs(attribute):
            for inner in graph.node:
                _fill(inner, given)
        attributes.append(attribute)
    kept = [AttributeProto.FromString(attribute.SerializeToString()) for attribute in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.type == AttributeProto.GRAPH else []), *attribute.graphs]
