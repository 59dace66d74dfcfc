"""Quantised operators that only ONNX Runtime has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Beforehand, Node
from ..table import MICROSOFT, Call, operator
from ..values import Quantised, element_type_of, numbers, wide
from .attention import heads
from .microsoft import attend
from .pooling import average_pool
from .quantised import (
    Integers,
    dequantise,
    dequantize_linear,
    dynamic_quantize_linear,
    matmul_integer,
    qlinear_conv,
    quantise,
    quantize_linear,
)

FACTS: dict[str, Any] = {"domain": MICROSOFT, "quantised": "itself"}
SCALES: dict[str, Any] = {"blind": (1, 2, 3, 4), "straight": True}


def requantise(real: Tensor, scale: Tensor, zero: Integers | None, like: Integers) -> Quantised:
    """Real numbers as those of a type, with a scale and zero point for all."""
    shift = 0.0 if zero is None else numbers(zero).reshape(())
    return quantise(real / wide(scale).reshape(()), shift, element_type_of(like if zero is None else zero))


operator("QuantizeLinear", **FACTS, blind=(1, 2), straight=True)(quantize_linear)
operator("DequantizeLinear", **FACTS, blind=(1, 2))(dequantize_linear)


def _of_two(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Call]:
    def build(node: Node) -> Call:
        def run(
            first: Integers, scale: Tensor, zero: Any, second: Integers, second_scale: Tensor, second_zero: Any,
            made_scale: Tensor, made_zero: Any = None,
        ) -> Quantised:  # fmt: skip
            real = combine(dequantise(first, scale, zero), dequantise(second, second_scale, second_zero))
            return requantise(real, made_scale, made_zero, first)

        return run

    return build


operator("QLinearAdd", **FACTS, blind=(1, 2, 4, 5, 6, 7), straight=True)(_of_two(torch.add))
operator("QLinearMul", **FACTS, blind=(1, 2, 4, 5, 6, 7), straight=True)(_of_two(torch.mul))


def of_one(call: Call) -> Call:
    """A function of real numbers for (numbers, scale, zero point, new scale, new zero point)."""

    def run(given: Integers, scale: Tensor, zero: Any, made_scale: Tensor, made_zero: Any = None) -> Quantised:
        return requantise(call(dequantise(given, scale, zero)), made_scale, made_zero, given)

    return run


@operator("QLinearSigmoid", **FACTS, **SCALES)
def qlinear_sigmoid(node: Node) -> Call:
    return of_one(torch.sigmoid)


@operator("QLinearLeakyRelu", **FACTS, **SCALES)
def qlinear_leaky_relu(node: Node) -> Call:
    slope = node.number("alpha", 0.01)
    return of_one(lambda given: functional.leaky_relu(given, slope))


@operator("QLinearSoftmax", **FACTS, **SCALES)
def qlinear_softmax(node: Node) -> Call:
    axis, flat = node.integer("axis", -1), node.integer("opset") < 13

    def run(given: Tensor) -> Tensor:
        if not flat:
            return given.softmax(axis)
        start = axis % given.ndim
        return given.flatten(start).softmax(-1).reshape(given.shape)

    return of_one(run)


@operator("QLinearGlobalAveragePool", **FACTS, **SCALES)
def qlinear_global_average_pool(node: Node) -> Call:
    last = bool(node.integer("channels_last"))

    def run(given: Tensor) -> Tensor:
        first = 1 if last else 2
        return given.mean(list(range(first, first + given.ndim - 2)), keepdim=True)

    return of_one(run)


@operator("QLinearAveragePool", **FACTS, **SCALES)
def qlinear_average_pool(node: Node) -> Call:
    pool, last = average_pool(node), bool(node.integer("channels_last"))
    return of_one(lambda given: pool(given.movedim(-1, 1)).movedim(1, -1) if last else pool(given))


@operator("QLinearConcat", **FACTS, blind=(0, 1), straight=True)
def qlinear_concat(node: Node) -> Call:
    axis = node.integer("axis")

    def run(scale: Tensor, zero: Integers, *given: Any) -> Quantised:
        parts = [dequantise(*given[place : place + 3]) for place in range(0, len(given), 3)]
        return requantise(torch.cat(parts, axis), scale, zero, zero)

    return run


@operator("QLinearWhere", **FACTS, blind=(0, 2, 3, 5, 6, 7, 8), straight=True)
def qlinear_where(node: Node) -> Call:
    def run(condition: Tensor, *given: Any) -> Quantised:
        first, second = dequantise(*given[:3]), dequantise(*given[3:6])
        return requantise(torch.where(condition, first, second), given[6], given[7], given[7])

    return run


@operator("QGemm", **FACTS, blind=(1, 2, 4, 5, 6, 7, 8), straight=True)
def qgemm(node: Node) -> Call:
    alpha, turned = node.number("alpha", 1.0), (bool(node.integer("transA")), bool(node.integer("transB")))

    def run(
        first: Integers, scale: Tensor, zero: Any, second: Integers, second_scale: Tensor, second_zero: Any,
        bias: Any = None, made_scale: Any = None, made_zero: Any = None,
    ) -> Any:  # fmt: skip
        left = numbers(first) - (0 if zero is None else numbers(zero))
        right = numbers(second)
        if second_zero is not None:
            shift = numbers(second_zero)
            right = right - (shift.unsqueeze(1 if turned[1] else 0) if shift.numel() > 1 else shift)
        sums = (left.mT if turned[0] else left).double() @ (right.mT if turned[1] else right).double()
        sums = sums if bias is None else sums + numbers(bias)
        real = sums.to(wide(scale).dtype) * (alpha * wide(scale) * wide(second_scale))
        return real if made_scale is None else requantise(real, made_scale, made_zero, first)

    return run


@operator("QLinearConv", **FACTS, blind=(1, 2, 4, 5, 6, 7), straight=True)
def microsoft_qlinear_conv(node: Node) -> Call:
    convolve, last = qlinear_conv(node), bool(node.integer("channels_last"))
    if not last:
        return convolve

    def run(images: Integers, *others: Any) -> Quantised:
        turned = Quantised(numbers(images).movedim(-1, 1), element_type_of(images))
        made = convolve(turned, *others)
        return Quantised(made.values.movedim(1, -1), made.element_type)

    return run


@operator("DynamicQuantizeMatMul", **FACTS, blind=(2, 3), straight=True)
def dynamic_quantize_matmul(node: Node) -> Call:
    quantize, product = dynamic_quantize_linear(node), matmul_integer(_without_constants(node))

    def run(given: Tensor, weight: Integers, weight_scale: Tensor, weight_zero: Any = None, bias: Any = None) -> Any:
        values, scale, zero = quantize(given)
        sums = product(values, weight, zero, weight_zero).values
        made = sums.to(given.dtype) * (scale * weight_scale)
        return made if bias is None else made + bias

    return run


@operator("MatMulIntegerToFloat", **FACTS, blind=(2, 3, 4, 5))
def matmul_integer_to_float(node: Node) -> Call:
    product = matmul_integer(_without_constants(node))

    def run(
        first: Integers, second: Integers, scale: Tensor, second_scale: Tensor,
        zero: Any = None, second_zero: Any = None, bias: Any = None,
    ) -> Any:  # fmt: skip
        made = product(first, second, zero, second_zero).values.to(scale.dtype) * (scale * second_scale)
        return made if bias is None else made + bias

    return run


def _without_constants(node: Node) -> Node:
    """The node as one whose inputs stand elsewhere than those of MatMulInteger."""
    return dataclasses.replace(node, inputs=(), beforehand=Beforehand())


@operator("QAttention", **FACTS, blind=(3, 4, 5, 6, 7))
def quantised_attention(node: Node) -> Call:
    count = node.integer("num_heads")
    if node.given(8) or node.integer("do_rotary"):
        raise ValueError("QAttention with a past or rotary embeddings is not supported")
    product = matmul_integer(_without_constants(node))

    def run(
        given: Integers, weight: Integers, bias: Tensor, scale: Tensor, weight_scale: Tensor,
        mask: Any = None, zero: Any = None, weight_zero: Any = None,
    ) -> Tensor:  # fmt: skip
        mixed = product(given, weight, zero, weight_zero).values.to(scale.dtype) * (scale * weight_scale) + bias
        query, key, value = (heads(part, count) for part in mixed.chunk(3, -1))
        return attend(node, query, key, value, mask, None)

    return run


@operator("MatMulNBits", **FACTS, blind=(1, 2, 3, 4))
def matmul_of_bits(node: Node) -> Call:
    """A matrix of 4 or 8 bits a weight, in blocks along the rows that each have a scale and a zero point."""
    rows, columns = node.integer("K"), node.integer("N")
    bits, block = node.integer("bits", 4), node.integer("block_size")
    if bits not in (4, 8) or node.given(4):
        raise ValueError(f"MatMulNBits with {bits} bits or g_idx is not supported")

    def unpacked(packed: Tensor, count: int) -> Tensor:
        whole = packed.reshape(columns, -1)
        if bits == 4:
            whole = torch.stack([whole & 15, whole >> 4], -1).reshape(columns, -1)
        return whole[:, :count]

    def run(given: Tensor, packed: Tensor, scales: Tensor, zeros: Any = None, _: Any = None, bias: Any = None) -> Any:
        blocks = -(-rows // block)
        weight = unpacked(packed, blocks * block).to(scales.dtype).reshape(columns, blocks, block)
        if zeros is None:
            shift: Any = 2 ** (bits - 1)
        else:
            shift = zeros.reshape(columns, blocks) if zeros.is_floating_point() else unpacked(zeros, blocks)
            shift = shift.to(scales.dtype).unsqueeze(-1)
        real = (weight - shift) * scales.reshape(columns, blocks, 1)
        made = given @ real.reshape(columns, -1)[:, :rows].T.to(given.dtype)
        return made if bias is None else made + bias

    return run
