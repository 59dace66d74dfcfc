"""Small ONNX classifiers that several tests build on."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
WEIGHT = np.random.default_rng(3).normal(size=(3 * 8 * 8, 5)).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[tuple[str, int, list[int | str] | None]],
    outputs: list[tuple[str, int, list[int | str] | None]],
    initializers: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    ir_version: int = 8,
    domains: tuple[str, ...] = (),
) -> ModelProto:
    values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    stored = [numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()]
    return helper.make_model(
        helper.make_graph(nodes, "classifier", *values, stored),
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)],
        ir_version=ir_version,
    )


def linear(prefix: str = "", **options: object) -> ModelProto:
    """A linear classifier of 3x8x8 images whose inner names start with ``prefix``."""
    nodes = [
        helper.make_node("Flatten", ["images"], [f"{prefix}flat"], name=f"{prefix}node"),
        helper.make_node("MatMul", [f"{prefix}flat", f"{prefix}weight"], ["logits"], name=f"{prefix}node_1"),
    ]
    return model_of(
        nodes,
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("logits", FLOAT, ["N", 5])],
        initializers={f"{prefix}weight": WEIGHT},
        **options,
    )
