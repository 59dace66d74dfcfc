"""Fix the batch size of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

from purifier.errors import ExportError


def with_fixed_batch(model: ModelProto, inputs: Sequence[str], count: int, path: Path) -> ModelProto:
    """A copy in which the first dimension of ``inputs``, and all dimensions of the same name, are ``count``.

    Raises
    ------
    ExportError
        The classifier's batch size is fixed already, to another number.
    """
    made = ModelProto()
    made.CopyFrom(model)
    for value in made.graph.input:
        if value.name not in inputs:
            continue
        first = value.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value") and first.dim_value != count:
            raise ExportError(
                f"{path}: expected a batch size of {first.dim_value}, to which the classifier's file is fixed, got "
                f"batch={count}; leave it out, or export the classifier with a free batch size",
                path,
            )
        if first.dim_param:
            make_dim_param_fixed(made.graph, first.dim_param, count)
        first.dim_value = count
    return made
