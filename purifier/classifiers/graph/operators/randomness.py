"""Random numbers, from torch's global generator unless the graph has a seed."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from ..node import Node
from ..table import Call, operator
from ..types import setting, torch_type


def _generator(node: Node, device: torch.device) -> torch.Generator | None:
    if not node.has("seed"):
        return None
    return torch.Generator(device).manual_seed(int(node.number("seed")))


def _drawn(node: Node, shape: Any, kind: int | None, like: Tensor | None) -> Tensor:
    device = setting().device if like is None else like.device
    dtype = like.dtype if kind is None and like is not None else torch_type(kind or TensorProto.FLOAT)
    generator = _generator(node, device)
    if "Normal" in node.op_type:
        numbers = torch.randn(shape, generator=generator, device=device)
        return (numbers * node.number("scale", 1.0) + node.number("mean")).to(dtype)
    low, high = node.number("low"), node.number("high", 1.0)
    return (torch.rand(shape, generator=generator, device=device) * (high - low) + low).to(dtype)


@operator("RandomNormal", "RandomUniform", random=True, differentiable=False)
def random_numbers(node: Node) -> Call:
    shape, kind = node.integers("shape"), node.integer("dtype", TensorProto.FLOAT)
    return lambda: _drawn(node, shape, kind, None)


@operator("RandomNormalLike", "RandomUniformLike", random=True, differentiable=False)
def random_numbers_like(node: Node) -> Call:
    kind = node.attributes.get("dtype")
    return lambda like: _drawn(node, like.shape, kind, like)


@operator("Bernoulli", since=15, random=True, differentiable=False)
def bernoulli(node: Node) -> Call:
    kind = node.attributes.get("dtype")

    def run(chance: Tensor) -> Tensor:
        drawn = torch.rand(chance.shape, generator=_generator(node, chance.device), device=chance.device)
        return (drawn < chance).to(chance.dtype if kind is None else torch_type(kind))

    return run


@operator("Multinomial", since=7, random=True, differentiable=False)
def multinomial(node: Node) -> Call:
    count, kind = node.integer("sample_size", 1), node.integer("dtype", TensorProto.INT32)

    def run(logits: Tensor) -> Tensor:
        generator = _generator(node, logits.device)
        return torch.multinomial(logits.softmax(-1), count, True, generator=generator).to(torch_type(kind))

    return run
