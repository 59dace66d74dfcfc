"""Walk the graphs of an ONNX model, and set aside types that not every tool can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of a node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def graphs_of(model: ModelProto) -> Iterator[GraphProto]:
    """All graphs of a model, those inside its functions included."""
    yield from all_graphs(model.graph)
    for function in model.functions:
        for node in function.node:
            for inner in subgraphs(node):
                yield from all_graphs(inner)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """All nodes of a model, those of its functions included."""
    for graph in graphs_of(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors that a model stores, sparse ones apart."""
    for graph in graphs_of(model):
        yield from graph.initializer
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def set_aside_maps(model: ModelProto) -> dict[str, TypeProto]:
    """Remove, in place, the types of outputs that hold maps (as of ZipMap), which onnx_ir cannot read."""
    aside: dict[str, TypeProto] = {}
    for output in model.graph.output:
        if _holds_map(output.type):
            aside[output.name] = TypeProto()
            aside[output.name].CopyFrom(output.type)
            output.ClearField("type")
    for graph in all_graphs(model.graph):
        plain = [value for value in graph.value_info if not _holds_map(value.type)]
        if len(plain) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(plain)
    return aside


def put_back(model: ModelProto, aside: Mapping[str, TypeProto]) -> None:
    """Undo ``set_aside_maps``, in place."""
    for output in model.graph.output:
        if output.name in aside:
            output.type.CopyFrom(aside[output.name])


def _holds_map(kind: TypeProto) -> bool:
    match kind.WhichOneof("value"):
        case "map_type":
            return True
        case "sequence_type":
            return _holds_map(kind.sequence_type.elem_type)
        case "optional_type":
            return _holds_map(kind.optional_type.elem_type)
    return False
