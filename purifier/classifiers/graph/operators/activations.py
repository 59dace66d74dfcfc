"""Activation functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node
from ..table import MICROSOFT, Call, operator, simple

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def relu(given: Tensor) -> Tensor:
    return functional.relu(given)


simple("Relu", relu, quantised="first")
simple("HardSwish", functional.hardswish)
simple("Mish", functional.mish)
simple("Softsign", functional.softsign)


@operator("LeakyRelu")
def leaky_relu(node: Node) -> Call:
    slope = node.number("alpha", 0.01)
    return lambda given: functional.leaky_relu(given, slope)


@operator("PRelu")
def prelu(node: Node) -> Call:
    def run(given: Tensor, slope: Tensor) -> Tensor:
        if node.opset < 7 and slope.ndim == 1 and slope.numel() > 1:
            slope = slope.reshape(-1, *[1] * (given.ndim - 2))
        return torch.where(given < 0, given * slope, given)

    return run


@operator("Elu")
def elu(node: Node) -> Call:
    alpha = node.number("alpha", 1.0)
    return lambda given: functional.elu(given, alpha)


@operator("Celu")
def celu(node: Node) -> Call:
    alpha = node.number("alpha", 1.0)
    return lambda given: functional.celu(given, alpha)


@operator("Selu")
def selu(node: Node) -> Call:
    alpha, gamma = node.number("alpha", SELU_ALPHA), node.number("gamma", SELU_GAMMA)
    return lambda given: gamma * functional.elu(given, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node) -> Call:
    alpha = node.number("alpha", 1.0)
    return lambda given: torch.where(given > alpha, given, 0.0)


@operator("HardSigmoid")
def hard_sigmoid(node: Node) -> Call:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    if beta == 0.5 and math.isclose(alpha, 1 / 6, rel_tol=1e-6):
        return functional.hardsigmoid
    return lambda given: (given * alpha + beta).clamp(0, 1)


@operator("Softplus")
def softplus(node: Node) -> Call:
    return lambda given: torch.logaddexp(given, given.new_zeros(()))


@operator("Gelu", since=20)
def gelu(node: Node) -> Call:
    approximate = node.text("approximate", "none")
    return lambda given: functional.gelu(given, approximate=approximate)


@operator("Swish", since=24)
def swish(node: Node) -> Call:
    alpha = node.number("alpha", 1.0)
    if alpha == 1:
        return functional.silu
    return lambda given: given * torch.sigmoid(alpha * given)


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(node: Node) -> Call:
    alpha = node.number("alpha", 1.702)
    return lambda given: given * torch.sigmoid(alpha * given)


@operator("Shrink", since=9)
def shrink(node: Node) -> Call:
    bias, edge = node.number("bias"), node.number("lambd", 0.5)

    def run(given: Tensor) -> Tensor:
        zero = torch.zeros_like(given)
        return torch.where(given < -edge, given + bias, torch.where(given > edge, given - bias, zero))

    return run


def _along(node: Node, call: Call) -> Call:
    """Along one axis; before opset 13, over that axis and all after it."""
    if node.opset >= 13:
        axis = node.integer("axis", -1)
        return lambda given: call(given, axis)
    axis = node.integer("axis", 1)

    def run(given: Tensor) -> Tensor:
        start = axis % given.ndim if given.ndim else 0
        if start == given.ndim - 1:
            return call(given, -1)  # type: ignore[no-any-return]  # torch's functions
        return call(given.flatten(start), -1).reshape(given.shape)  # type: ignore[no-any-return]  # as above

    return run


@operator("Softmax")
def softmax(node: Node) -> Call:
    return _along(node, torch.softmax)


@operator("LogSoftmax")
def log_softmax(node: Node) -> Call:
    return _along(node, torch.log_softmax)


@operator("Hardmax", differentiable=False)
def hardmax(node: Node) -> Call:
    def first_of(given: Tensor, axis: int) -> Tensor:
        place = given.argmax(axis, keepdim=True)
        return torch.zeros_like(given).scatter(axis, place, 1.0)

    return _along(node, first_of)
