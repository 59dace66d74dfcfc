"""Models, images with bad pixels, and how they are asked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from onnx_models import FLOAT, model_of
from scoring_purifiers import Classes, calibrated

COUNT, BAD = 64, 17


MANY = {3: math.nan, 17: 1.5, 20: math.inf, 41: -math.inf, 63: -0.5}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.nn.functional.max_pool2d(self.layer(x).relu(), 2).mean((2, 3)))


def graph(kind: int = FLOAT) -> ModelProto:
    """A classifier with ReLU and max-pooling, which lose NaN; its outputs are a label, logits and probabilities."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Conv", ["wide", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalMaxPool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", ["logits"], ["prob"], axis=1),
    ]
    shape = ["N", 10]
    return model_of(
        nodes,
        inputs=[("x", kind, ["N", 1, 28, 28])],
        outputs=[("label", TensorProto.INT64, ["N"]), ("logits", FLOAT, shape), ("prob", FLOAT, shape)],
        initializers={
            "kernel": random.normal(size=(4, 1, 3, 3)).astype(np.float32),
            "weight": random.normal(size=(4, 10)).astype(np.float32),
        },
    )


def only(model: ModelProto, *names: str) -> ModelProto:
    kept = [output for output in model.graph.output if output.name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model


def images() -> Tensor:
    """Half of them dark, half of them bright, which a threshold of 0.5 rejects."""
    noise = torch.rand((COUNT, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    return noise * 0.3 + 0.7 * (torch.arange(COUNT) % 2).view(-1, 1, 1, 1)


def spoilt(values: dict[int, float] | None = None) -> Tensor:
    """The same images, with one bad pixel in some of them."""
    made = images()
    for place, value in (values or {BAD: math.nan}).items():
        made[place, 0, 5, 5] = value
    return made


def plain(model: Path | ModelProto) -> onnxruntime.InferenceSession:
    source = model.SerializeToString() if isinstance(model, ModelProto) else model
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


def which() -> Classes:
    return calibrated(Classes())
