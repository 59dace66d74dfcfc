"""An ONNX model without its weights, for shape inference and counting."""

from __future__ import annotations

import math

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.inliner import inline_local_functions

from ..foreign_code import Attempt
from .graphs import all_graphs

SMALL = 1024
"""Elements up to which a stored tensor is kept, because it may be part of a shape."""
USUAL_SIDE, USUAL_CHANNELS = 224, 3
"""For free sizes of images."""


def skeleton(model: ModelProto) -> ModelProto:
    """A copy whose large tensors have type and shape but no data, with the sizes of one image at its inputs."""
    bare = ModelProto(ir_version=max(model.ir_version, 4))
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = "skeleton"
    for node in model.graph.node:  # one by one, because Constant nodes can hold all weights
        bare.graph.node.add().CopyFrom(node)
        _strip_node(bare.graph.node[-1])
    # Declared types and shapes may be wrong, and then nothing would be inferred.
    bare.graph.output.extend(ValueInfoProto(name=value.name) for value in model.graph.output)
    stored = {tensor.name for tensor in model.graph.initializer}
    bare.graph.initializer.extend(_without_data(tensor) for tensor in model.graph.initializer)
    bare.graph.input.extend(_sized(value) for value in model.graph.input if value.name not in stored)
    for graph in all_graphs(bare.graph):
        _strip(graph, own=graph is bare.graph)
    return bare


def inlined_skeleton(model: ModelProto) -> ModelProto:
    """The same with its functions inlined; count their nodes first."""
    bare = skeleton(model)
    if bare.functions:
        with Attempt():  # a malformed function is reported by whoever inlines it to use it
            bare = inline_local_functions(bare)
    return bare


def _strip(graph: GraphProto, *, own: bool) -> None:
    del graph.value_info[:]
    if not own:
        tensors = [_without_data(tensor) for tensor in graph.initializer]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR and math.prod(attribute.t.dims) > SMALL:
            attribute.t.CopyFrom(_without_data(attribute.t))


def _without_data(tensor: TensorProto) -> TensorProto:
    if math.prod(tensor.dims) <= SMALL:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _sized(value: ValueInfoProto) -> ValueInfoProto:
    """An input with the free sizes replaced: one image, of a usual size; 1 for anything else."""
    fixed = ValueInfoProto()
    fixed.CopyFrom(value)
    dims = fixed.type.tensor_type.shape.dim
    images = len(dims) == 4
    last = images and dims[3].dim_value in (1, USUAL_CHANNELS)
    usual = [1, USUAL_SIDE, USUAL_SIDE, USUAL_CHANNELS] if last else [1, USUAL_CHANNELS, USUAL_SIDE, USUAL_SIDE]
    for place, dim in enumerate(dims):
        if not dim.dim_value > 0:
            dim.dim_value = usual[place] if images else 1
    return fixed
