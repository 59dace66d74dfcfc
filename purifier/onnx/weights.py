"""Set the weights of an ONNX model aside, so that its graph can be changed and opened without copying them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

Weights: TypeAlias = Mapping[str, TensorProto]
SMALL = 1024
"""Elements of the largest tensor that stays in the graph: it may be a shape or an axis."""
TYPES = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32}
PLACE = "set-aside"


def without_weights(model: ModelProto) -> tuple[ModelProto, dict[str, TensorProto]]:
    """A copy with a mark in place of each large stored tensor, and the tensors by name."""
    names = Counter(tensor.name for tensor in model.graph.initializer)
    fed = {value.name for value in model.graph.input}
    bare, aside = ModelProto(), {}
    _copy_fields(model, bare, "graph")
    _copy_fields(model.graph, bare.graph, "initializer")
    for tensor in model.graph.initializer:
        known = tensor.data_type in TYPES and tensor.HasField("raw_data")
        if known and math.prod(tensor.dims) > SMALL and names[tensor.name] == 1 and tensor.name not in fed:
            aside[tensor.name] = tensor
            mark = bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            mark.data_location = TensorProto.EXTERNAL
            mark.external_data.add(key="location", value=PLACE)
        else:
            bare.graph.initializer.add().CopyFrom(tensor)
    return bare, aside


def _copy_fields(source: ModelProto | GraphProto, made: ModelProto | GraphProto, left_out: str) -> None:
    for field, value in source.ListFields():
        if field.name == left_out:
            continue
        if field.is_repeated:
            getattr(made, field.name).extend(value)
        else:
            setattr(made, field.name, value)


def with_weights(bare: ModelProto, weights: Weights) -> ModelProto:
    """A copy of a model with the tensors back in their places."""
    whole = ModelProto()
    whole.CopyFrom(bare)
    for tensor in whole.graph.initializer:
        if tensor.name in weights and tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(weights[tensor.name])
    return whole


def arrays_of(weights: Weights) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors as arrays."""
    return {name: numpy_helper.to_array(tensor) for name, tensor in weights.items()}


def lend(options: onnxruntime.SessionOptions, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Give a session to be opened the tensors in place of the marks; they must live as long as it does."""
    if arrays:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
