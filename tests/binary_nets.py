"""A two-class classifier of real images with one output, in torch and as ONNX."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from nets import trained
from purifier import ImageData, load_data

PULLOVER, COAT = 2, 4


class Binary(nn.Module):
    """Tells coats (1) from pullovers (0) by the small net's logits, in one of several forms."""

    def __init__(self, kind: str = "binary-probability", shape: tuple[int, ...] = (-1, 1), features: bool = False):
        super().__init__()
        self.net, self.kind, self.shape, self.features = trained("net"), kind, shape, features

    def forward(self, images: Tensor) -> Any:
        logits = self.net(images)
        pair = logits[:, [PULLOVER, COAT]]
        z = (pair[:, 1] - pair[:, 0]).reshape(self.shape)
        made = {"logits": pair, "probabilities": pair.softmax(1), "binary-logit": z, "binary-probability": z.sigmoid()}
        return {"feat": logits, "out": made[self.kind]} if self.features else made[self.kind]


def pullovers_and_coats(count: int) -> ImageData:
    """The first Fashion-MNIST test images of two classes, labelled 0 and 1."""
    everything = load_data("fashion-mnist:test")
    both = ((everything.labels == PULLOVER) | (everything.labels == COAT)).nonzero().flatten()[:count]
    pixels, labels = everything.batch(both.tolist())
    return ImageData("pullovers-and-coats", pixels, (labels == COAT).long(), ("pullover", "coat"))


def as_onnx(net: Binary, path: Path, outputs: tuple[str, ...] = ("out",)) -> ModelProto:
    """The net as ONNX with a free batch size, input ``images``; each form is exported once."""
    path.write_bytes(_exported(net.kind, net.shape, net.features, outputs))
    return onnx.load(path)


@functools.cache
def _exported(kind: str, shape: tuple[int, ...], features: bool, outputs: tuple[str, ...]) -> bytes:
    program = torch.onnx.export(
        Binary(kind, shape, features).eval(),
        (torch.rand(2, 1, 28, 28),),
        dynamo=True,
        opset_version=18,
        input_names=["images"],
        output_names=outputs,
        dynamic_shapes=[{0: torch.export.Dim("batch")}],
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()
