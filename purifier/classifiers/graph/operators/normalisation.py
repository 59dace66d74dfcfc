"""Normalisation by mean and variance, or by norm."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from ..node import Node
from ..table import Call, operator
from ..types import float_type


@operator("BatchNormalization")
def batch_normalization(node: Node) -> Call:
    epsilon, momentum = node.number("epsilon", 1e-5), node.number("momentum", 0.9)
    trains = bool(node.integer("training_mode")) or (node.opset < 7 and not node.integer("is_test"))
    together = bool(node.integer("spatial", 1))

    def run(given: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
        if not together:
            return (given - mean) * torch.rsqrt(variance + epsilon) * scale + bias
        if not trains:
            plain = given.dtype == scale.dtype == mean.dtype and not (mean.requires_grad or variance.requires_grad)
            if plain:
                return functional.batch_norm(given, mean, variance, scale, bias, False, 0.0, epsilon)
            return _normalised(given, scale, bias, mean, variance)
        axes = [0, *range(2, given.ndim)]
        own, spread = given.mean(axes), given.var(axes, correction=0)
        return (
            _normalised(given, scale, bias, own, spread),
            mean * momentum + own.to(mean.dtype) * (1 - momentum),
            variance * momentum + spread.to(variance.dtype) * (1 - momentum),
        )

    def _normalised(given: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        shape = (-1, *[1] * (given.ndim - 2))
        factor = torch.rsqrt(variance + epsilon) * scale.to(variance.dtype)
        shift = bias.to(variance.dtype) - mean.to(variance.dtype) * factor
        return (given.to(variance.dtype) * factor.reshape(shape) + shift.reshape(shape)).to(given.dtype)

    return run


@operator("InstanceNormalization", since=6)
def instance_normalization(node: Node) -> Call:
    epsilon = node.number("epsilon", 1e-5)
    return lambda given, scale, bias: functional.instance_norm(given, None, None, scale, bias, True, 0.0, epsilon)


def stash_type(node: Node) -> int:
    """The type in which a normalisation computes."""
    return node.integer("stash_type", TensorProto.FLOAT)


@operator("LayerNormalization")
def layer_normalization(node: Node) -> Call:
    axis, epsilon, kind = node.integer("axis", -1), node.number("epsilon", 1e-5), stash_type(node)
    several = any(node.outputs[1:])

    def run(given: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
        sizes = given.shape[axis % given.ndim :]
        if (
            not several
            and scale.shape == sizes
            and (bias is None or bias.shape == sizes)
            and scale.dtype == given.dtype
        ):
            return functional.layer_norm(given, sizes, scale, bias, epsilon)
        wide = given.to(float_type(kind)) if given.dtype != torch.float64 else given
        axes = list(range(axis % given.ndim, given.ndim))
        mean = wide.mean(axes, keepdim=True)
        centred = wide - mean
        inverse = torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
        made = (centred * inverse).to(scale.dtype) * scale
        made = (made if bias is None else made + bias).to(given.dtype)
        return (made, mean, inverse) if several else made

    return run


@operator("RMSNormalization", since=23)
def rms_normalization(node: Node) -> Call:
    axis, epsilon, kind = node.integer("axis", -1), node.number("epsilon", 1e-5), stash_type(node)

    def run(given: Tensor, scale: Tensor) -> Tensor:
        axes = list(range(axis % given.ndim, given.ndim))
        wide = given.to(float_type(kind)) if given.dtype != torch.float64 else given
        return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(scale.dtype) * scale

    return run


@operator("GroupNormalization", since=18)
def group_normalization(node: Node) -> Call:
    epsilon, groups = node.number("epsilon", 1e-5), node.integer("num_groups")

    def run(given: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if node.opset < 21:  # scale and bias are those of groups
            channels = given.shape[1] // groups
            scale, bias = scale.repeat_interleave(channels), bias.repeat_interleave(channels)
        return functional.group_norm(given, groups, scale, bias, epsilon)

    return run


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(node: Node) -> Call:
    axes = node.integers("axes", [0, 2, 3])

    def run(given: Tensor) -> Tensor:
        mean = given.mean(axes, keepdim=True)
        spread = (given.square().mean(axes, keepdim=True) - mean.square()).sqrt()
        return (given - mean) / (spread + 1e-9)

    return run


@operator("LRN")
def local_response_normalization(node: Node) -> Call:
    size, alpha = node.integer("size"), node.number("alpha", 1e-4)
    beta, bias = node.number("beta", 0.75), node.number("bias", 1.0)

    def run(given: Tensor) -> Tensor:
        squares = given.square().flatten(2).unsqueeze(1)
        before = (size - 1) // 2
        framed = functional.pad(squares, (0, 0, before, size - 1 - before))
        sums = functional.avg_pool2d(framed, (size, 1), 1).squeeze(1).reshape(given.shape)
        return given / (bias + alpha * sums).pow(beta)

    return run


@operator("LpNormalization")
def lp_normalization(node: Node) -> Call:
    axis, power = node.integer("axis", -1), node.integer("p", 2)

    def run(given: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(given, power, axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(given), given / torch.where(norm == 0, 1.0, norm))

    return run


@operator("Dropout", host=(1, 2))
def dropout(node: Node) -> Call:
    """Dropout passes everything on, unless the graph itself says that it trains."""
    seed, with_mask = node.attributes.get("seed"), any(node.outputs[1:])

    def run(given: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:
        share = 0.5 if ratio is None else float(ratio)
        if training is None or not bool(training) or share == 0:
            return (given, torch.ones_like(given, dtype=torch.bool)) if with_mask else given
        generator = None if seed is None else torch.Generator(given.device).manual_seed(int(seed))
        kept = torch.rand(given.shape, generator=generator, device=given.device) >= share
        return torch.where(kept, given, 0.0) / (1 - share), kept

    return run
