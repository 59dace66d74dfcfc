"""Set the weights of an ONNX model aside, so that its graph can be changed and opened without copying them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

Array: TypeAlias = np.ndarray[Any, Any]
Weights: TypeAlias = Mapping[str, TensorProto | Array]
SMALL = 1024
"""Elements of the largest tensor that stays in the graph: it may be a shape or an axis."""
TYPES = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32}
PLACE = "set-aside"


@dataclasses.dataclass(frozen=True)
class SplitModel:
    """An ONNX model with some of its large weights apart, as when its file was read.

    Parameters
    ----------
    bare
        The model, with a mark in place of each of ``weights``.
    weights
        What the marks stand for, by name.
    """

    bare: ModelProto
    weights: Weights = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def whole(self) -> ModelProto:
        """The model with all its weights: ``bare`` itself if none are apart, else a copy made when first asked for."""
        return with_weights(self.bare, self.weights) if self.weights else self.bare


def without_weights(model: ModelProto) -> tuple[ModelProto, dict[str, TensorProto]]:
    """A copy with a mark in place of each large stored tensor, and the tensors by name."""
    bare, aside = ModelProto(), {}
    _copy_fields(model, bare, "graph")
    _copy_fields(model.graph, bare.graph, "initializer")
    unique = names_of_weights(model)
    for tensor in model.graph.initializer:
        if tensor.name in unique and tensor.HasField("raw_data") and can_be_apart(tensor):
            aside[tensor.name] = tensor
            bare.graph.initializer.add().CopyFrom(mark(tensor))
        else:
            bare.graph.initializer.add().CopyFrom(tensor)
    return bare, aside


def names_of_weights(model: ModelProto) -> set[str]:
    """The names that stand for one stored tensor each, which callers cannot overwrite."""
    names = Counter(tensor.name for tensor in model.graph.initializer)
    fed = {value.name for value in model.graph.input}
    return {name for name, count in names.items() if count == 1 and name not in fed}


def can_be_apart(tensor: TensorProto) -> bool:
    """Whether ONNX Runtime can be lent a tensor of this type, and it is too large to be part of a shape."""
    return tensor.data_type in TYPES and math.prod(tensor.dims) > SMALL


def mark(tensor: TensorProto) -> TensorProto:
    """What stands in the graph for a tensor that is set aside."""
    made = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value=PLACE)
    return made


def is_mark(tensor: TensorProto) -> bool:
    """Whether a tensor that is kept elsewhere is one that was set aside."""
    return [(entry.key, entry.value) for entry in tensor.external_data] == [("location", PLACE)]


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
            stored = weights[tensor.name]
            if isinstance(stored, TensorProto):
                tensor.CopyFrom(stored)
            else:
                tensor.ClearField("data_location")
                tensor.ClearField("external_data")
                tensor.raw_data = stored.tobytes()
    return whole


def arrays_of(weights: Weights) -> dict[str, Array]:
    """The tensors as arrays."""
    return {
        name: numpy_helper.to_array(stored) if isinstance(stored, TensorProto) else stored
        for name, stored in weights.items()
    }


def lend(options: onnxruntime.SessionOptions, arrays: Mapping[str, Array]) -> None:
    """Give a session to be opened the tensors in place of the marks; they must live as long as it does."""
    if arrays:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
