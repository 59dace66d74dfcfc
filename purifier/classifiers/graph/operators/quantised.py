"""Quantisation: rounding has a straight-through gradient, saturation its own."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from ..node import Node
from ..table import Call, operator
from ..types import SHORT_FLOATS, float_type, is_integer, range_of
from ..values import EXACT_FLOAT32, Quantised, element_type_of, limited, numbers, rounded, straight_through, wide
from .casts import to_short_float
from .convolution import convolution

Integers = Tensor | Quantised


def along(factor: Tensor, given: Tensor, axis: int, block: int = 0) -> Tensor:
    """A scale or zero point shaped for a tensor: one for all, or for each index of an axis, or each block of it."""
    if block:
        place = axis % given.ndim
        return factor.repeat_interleave(block, place).narrow(place, 0, given.shape[place])
    if factor.numel() == 1:
        return factor.reshape(())
    if factor.ndim == given.ndim:
        return factor
    return factor.reshape(-1, *[1] * (given.ndim - 1 - axis % given.ndim))


def quantise(given: Tensor, zero: Tensor | float, kind: int, *, saturate: bool = True) -> Quantised:
    """Numbers that are divided by their scale, as the nearest of a type."""
    if kind in SHORT_FLOATS:
        shifted = given + zero
        return Quantised(straight_through(shifted, to_short_float(shifted, kind, saturate)), kind)
    low, high = range_of(kind)
    return Quantised(limited(rounded(given) + zero, low, high), kind)


def dequantise(value: Integers, scale: Tensor, zero: Integers | None = None) -> Tensor:
    """(value - zero) * scale, in the type of ``scale`` but at least float32."""
    held = numbers(value)
    shifted = held if zero is None else held - numbers(zero)
    factor = wide(scale)
    return shifted.to(factor.dtype) * factor


@operator("QuantizeLinear", since=10, blind=(1, 2), straight=True, quantised="itself")
def quantize_linear(node: Node) -> Call:
    axis, block, saturate = node.integer("axis", 1), node.integer("block_size"), bool(node.integer("saturate", 1))
    wanted = node.integer("output_dtype")

    def run(given: Any, scale: Tensor, zero: Integers | None = None) -> Quantised:
        kind = wanted or (TensorProto.UINT8 if zero is None else element_type_of(zero))
        real = numbers(given) if isinstance(given, Quantised) or not given.is_floating_point() else wide(given)
        shift = 0.0 if zero is None else along(numbers(zero), real, axis, block)
        return quantise(real / along(wide(scale), real, axis, block), shift, kind, saturate=saturate)

    return run


@operator("DequantizeLinear", since=10, blind=(1, 2), quantised="itself")
def dequantize_linear(node: Node) -> Call:
    axis, block, wanted = node.integer("axis", 1), node.integer("block_size"), node.integer("output_dtype")

    def run(given: Integers, scale: Tensor, zero: Integers | None = None) -> Tensor:
        held = given.values if isinstance(given, Quantised) else given
        factor = along(scale, held, axis, block)
        shift = None if zero is None else along(numbers(zero), held, axis, block)
        return dequantise(given, factor, shift).to(float_type(wanted) if wanted else scale.dtype)

    return run


@operator("DynamicQuantizeLinear", since=11, straight=True)
def dynamic_quantize_linear(node: Node) -> Call:
    """The gradient is that of the identity: the range follows the values, so that nothing saturates for good."""

    def run(given: Tensor) -> tuple[Quantised, Tensor, Tensor]:
        scale, zero = _dynamic_range(given.detach())
        real = wide(given) / scale
        made = straight_through(real, (real.detach().round() + zero).clamp(0, 255))
        return Quantised(made, TensorProto.UINT8), scale.to(given.dtype), zero.to(torch.uint8)

    return run


def _dynamic_range(given: Tensor) -> tuple[Tensor, Tensor]:
    low, high = wide(given).amin().clamp_max(0), wide(given).amax().clamp_min(0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, (-low / scale).round().clamp(0, 255)


def _centred(value: Integers, zero: Integers | None, axis: int | None = None) -> Tensor:
    """The numbers less their zero point."""
    held = numbers(value)
    if zero is None:
        return held
    shift = numbers(zero)
    if axis is not None and shift.numel() > 1 and shift.ndim == 1:
        shift = shift.reshape(-1, *[1] * (held.ndim - 1 - axis % held.ndim))
    elif shift.numel() == 1:
        shift = shift.reshape(())
    return held - shift


def _exact(first: Tensor, second: Tensor, terms: float | None) -> tuple[Tensor, Tensor]:
    """Both factors as float32 if no sum of their products can exceed what that holds exactly, else as float64.

    ``terms`` is the largest sum of absolute weights of one output, None if not known.
    """
    if terms is not None and terms * 2 * 255 < EXACT_FLOAT32:
        dtype = torch.promote_types(first.dtype, second.dtype)
        return first.to(dtype), second.to(dtype)
    return first.double(), second.double()


def _terms(node: Node, weight: int, zero: int, axes: Any) -> float | None:
    """The largest sum of absolute weights of one output, if the weights are known beforehand and of eight bits."""
    held, shift = node.constants.get(weight), node.constants.get(zero)
    if held is None or (shift is None and node.given(zero)):
        return None
    centred = numbers(held).abs() + (0 if shift is None else float(numbers(shift).abs().max()))
    return float(centred.sum(axes(centred)).max())


def _of_one_output(weight: Tensor) -> list[int]:
    return list(range(1, weight.ndim))


def _of_one_column(weight: Tensor) -> list[int]:
    return [weight.ndim - 2] if weight.ndim > 1 else [0]


@operator("ConvInteger", since=10, blind=(2, 3), quantised="itself")
def conv_integer(node: Node) -> Call:
    convolve, terms = convolution(node), _terms(node, 1, 3, _of_one_output)

    def run(images: Integers, weight: Integers, zero: Any = None, weight_zero: Any = None) -> Quantised:
        factors = _exact(_centred(images, zero), _centred(weight, weight_zero, 0), terms)
        return Quantised(convolve(*factors), TensorProto.INT32)

    return run


@operator("MatMulInteger", since=10, blind=(2, 3), quantised="itself")
def matmul_integer(node: Node) -> Call:
    terms = _terms(node, 1, 3, _of_one_column)

    def run(first: Integers, second: Integers, zero: Any = None, second_zero: Any = None) -> Quantised:
        left, right = _exact(_centred(first, zero, -2), _centred(second, second_zero, -1), terms)
        return Quantised(left @ right, TensorProto.INT32)

    return run


def requantised(sums: Tensor, factor: Tensor, zero: Integers | None, kind: int) -> Quantised:
    """Integer sums times a factor, as the nearest of a type; the product is of float32, as in ONNX Runtime."""
    assert is_integer(kind)
    product = sums.to(torch.float32) * factor if factor.dtype != torch.float64 else sums * factor
    return quantise(product, 0.0 if zero is None else numbers(zero).reshape(()), kind)


@operator("QLinearConv", since=10, blind=(1, 2, 4, 5, 6, 7), straight=True, quantised="itself")
def qlinear_conv(node: Node) -> Call:
    convolve, terms = convolution(node, 3), _terms(node, 3, 5, _of_one_output)

    def run(
        images: Integers,
        scale: Tensor,
        zero: Any,
        weight: Integers,
        weight_scale: Tensor,
        weight_zero: Any,
        made_scale: Tensor,
        made_zero: Integers,
        bias: Any = None,
    ) -> Quantised:
        sums = convolve(*_exact(_centred(images, zero), _centred(weight, weight_zero, 0), terms))
        if bias is not None:
            sums = sums.double() + numbers(bias).reshape(-1, *[1] * (sums.ndim - 2))
        factor = wide(scale) * wide(weight_scale) / wide(made_scale)
        factor = factor.reshape(-1, *[1] * (sums.ndim - 2)) if factor.numel() > 1 else factor.reshape(())
        return requantised(sums, factor, made_zero, element_type_of(made_zero))

    return run


@operator("QLinearMatMul", since=10, blind=(1, 2, 4, 5, 6, 7), straight=True, quantised="itself")
def qlinear_matmul(node: Node) -> Call:
    terms = _terms(node, 3, 5, _of_one_column)

    def run(
        first: Integers,
        scale: Tensor,
        zero: Any,
        second: Integers,
        second_scale: Tensor,
        second_zero: Any,
        made_scale: Tensor,
        made_zero: Integers,
    ) -> Quantised:
        left, right = _exact(_centred(first, zero, -2), _centred(second, second_zero, -1), terms)
        sums = left @ right
        rows = wide(scale).reshape(-1, 1) if scale.numel() > 1 and scale.ndim == 1 else wide(scale)
        factor = rows * wide(second_scale) / wide(made_scale)
        return requantised(
            sums, factor.reshape(()) if factor.numel() == 1 else factor, made_zero, element_type_of(made_zero)
        )

    return run
