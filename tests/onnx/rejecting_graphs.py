"""A linear classifier as a graph and in torch, and purifiers that reject bright images."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from onnx_models import FLOAT, model_of
from scoring_purifiers import Bright, Classes, calibrated, dark_and_bright

PIXELS, REJECTED = dark_and_bright(), np.array([False, True, False, True, True, False])


WEIGHT = np.random.default_rng(5).normal(size=(784, 10)).astype(np.float32)


@functools.cache
def bright() -> Bright:
    return calibrated(Bright())


@functools.cache
def classes() -> Classes:
    return calibrated(Classes())


def classifier(kind: int = FLOAT, declared: int | str | None = 10, name: str = "scores") -> ModelProto:
    """Linear; its outputs are the label, the logits and their softmax."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["wide"]),
        helper.make_node("Cast", ["wide"], [name], to=kind),
        helper.make_node("ArgMax", [name], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", [name], ["probabilities"], axis=1),
    ]
    shape = None if declared is None else ["N", declared]
    return model_of(
        nodes,
        inputs=[("x", FLOAT, ["N", 1, 28, 28])],
        outputs=[("label", TensorProto.INT64, ["N"]), (name, kind, shape), ("probabilities", kind, shape)],
        initializers={"weight": WEIGHT},
    )


class Net(nn.Module):
    """The same in torch, logits alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


def run(session: onnxruntime.InferenceSession, **more: Any) -> dict[str, np.ndarray]:
    values = session.run(None, {"x": PIXELS.numpy(), **more})
    return {output.name: value for output, value in zip(session.get_outputs(), values, strict=True)}


def plain(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def without_label(model: ModelProto) -> ModelProto:
    kept = [output for output in model.graph.output if output.name != "label"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model
