"""Models of one node, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, ValueInfoProto, helper

from purifier.classifiers.graph.module import GraphModule


def one_node(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    *,
    domain: str = "",
    version: int = 17,
    outputs: int = 1,
    shown: Sequence[int] = (),
    constants: Sequence[int] = (),
    **attributes: Any,
) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """A model of one node, and what to feed it; inputs at ``constants`` are stored in the model.

    ``shown`` are the outputs that the node has, if not all of the first ``outputs``.
    """
    names = ["" if array is None else f"i{place}" for place, array in enumerate(inputs)]
    made = [f"o{place}" if place in (shown or range(outputs)) else "" for place in range(outputs)]
    node = helper.make_node(op_type, names, made, domain=domain, **attributes)
    held = {name: array for name, array in zip(names, inputs, strict=True) if name}
    fed = {name: array for place, (name, array) in enumerate(held.items()) if int(name[1:]) not in constants}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in fed.items()
    ]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in held.items() if name not in fed]
    graph = helper.make_graph([node], "one", values, [ValueInfoProto(name=name) for name in made if name], stored)
    imports = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8), fed


def by_runtime(model: ModelProto, feed: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of ONNX Runtime on the CPU, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, dict(feed)), strict=True))


def by_torch(model: ModelProto, feed: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of ``GraphModule``, by name."""
    with torch.no_grad():
        return GraphModule(model)(**{name: torch.from_numpy(np.array(array)) for name, array in feed.items()})


def check_agreement(model: ModelProto, feed: Mapping[str, Any], *, tolerance: float = 1e-5, steps: int = 0) -> None:
    """Raise unless both give the same; integers may differ by ``steps``."""
    expected, found = by_runtime(model, feed), by_torch(model, feed)
    assert list(found) == list(expected)
    for name, wanted in expected.items():
        got = np.asarray(found[name])
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
        else:
            assert np.abs(got.astype(np.int64) - wanted.astype(np.int64)).max(initial=0) <= steps


random = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


def ints(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max + 1, shape).astype(dtype)


def number(value: float, dtype: Any = np.float32) -> np.ndarray:
    return np.array(value, dtype)


def int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)
