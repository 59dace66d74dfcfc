"""A graph in half precision, whose inputs and outputs stay float32."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx_ir as ir
from onnx import ModelProto

from purifier.errors import ExportError
from purifier.foreign_code import explained
from purifier.onnx.graphs import put_back, set_aside_maps
from purifier.onnx.torch_export import innermost_cause, to_proto


def in_half_precision(file: Path, path: Path) -> ModelProto:
    """The float32 model in ``file`` in float16, by ONNX Runtime's own converter; errors call it ``path``.

    Operators that need float32 keep it, and so do inputs and outputs. Gradient steps, unrolled or in a Loop, become
    float16 too.

    Raises
    ------
    ExportError
        The converter fails.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # imports much, for seconds

    failed, advice = partial(ExportError, path=path), "export with precision='fp32' (--precision fp32)"
    with explained(f"{path}: ONNX Runtime cannot convert it to fp16", failed, advice, describe=innermost_cause):
        model = convert_float_to_float16(str(file), keep_io_types=True)
        return _sorted(model)


def _sorted(model: ModelProto) -> ModelProto:
    """The model with each node after those that it needs; the converter puts its casts at the end."""
    aside = set_aside_maps(model)
    held = ir.from_proto(model)
    held.graph.sort()
    made = to_proto(held)
    put_back(made, aside)
    return made
