"""Changes of type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from ..node import Node
from ..table import Call, operator
from ..types import (
    FLOATS,
    INTEGERS,
    SHORT_FLOATS,
    SHORT_INTEGERS,
    float_type,
    name_of,
    range_of,
    torch_type,
)
from ..values import Quantised, element_type_of, numbers, straight_through, wide


def cast(value: Tensor | Quantised, element_type: int, *, saturate: bool = True, mode: str = "up") -> Any:
    """A value in another type. Casts to integers are straight-through where the value carries a gradient."""
    if element_type in FLOATS:
        if isinstance(value, Quantised):
            return value.values.to(float_type(element_type))
        return value.to(float_type(element_type))
    given = value.values if isinstance(value, Quantised) else value
    if element_type in SHORT_FLOATS:
        exact = wide(given)
        return Quantised(straight_through(exact, to_short_float(exact, element_type, saturate, mode)), element_type)
    if element_type in SHORT_INTEGERS or (element_type in INTEGERS and given.requires_grad):
        exact = wide(given) if given.is_floating_point() else numbers(given)
        exact = exact if element_type in SHORT_INTEGERS or element_type in _NARROW else exact.double()
        return Quantised(straight_through(exact, _within(exact.detach().trunc(), element_type)), element_type)
    if isinstance(value, Quantised) and element_type in INTEGERS:
        return given.to(torch.int64).to(INTEGERS[element_type])
    dtype = torch_type(element_type)
    if dtype == torch.bool:
        return given != 0
    if given.is_floating_point() and dtype in (torch.uint16, torch.uint32):
        return given.to(torch.int64).to(dtype)
    return given.to(dtype)


_NARROW = (TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16)


def _within(whole: Tensor, element_type: int) -> Tensor:
    """Whole numbers in the range of a type, beyond whose end they begin anew; 64 bits are not looked at."""
    low, high = range_of(element_type)
    return whole if high - low >= 2**53 else (whole - low).remainder(high - low + 1) + low


def to_short_float(given: Tensor, element_type: int, saturate: bool = True, mode: str = "up") -> Tensor:
    """The nearest numbers, ties to even, of a float of eight bits and less; same shape and dtype, no gradient.

    ``saturate`` gives the largest number instead of NaN or infinity; ``mode`` is how to round to powers of two.
    """
    dtype = np.dtype(getattr(ml_dtypes, SHORT_FLOATS[element_type]))
    array = given.detach().cpu().float().numpy()
    if element_type == TensorProto.FLOAT8E8M0:
        return torch.from_numpy(_powers_of_two(array, saturate, mode)).to(given)
    highest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]  # ml_dtypes'
    if element_type == TensorProto.FLOAT4E2M1:
        saturate = True
    if saturate:
        array = np.clip(array, -highest, highest)
    else:
        array = np.where(np.abs(array) > highest * 2, np.copysign(np.inf, array), array)
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(array.astype(dtype).astype(np.float32))).to(given)


def _powers_of_two(array: np.ndarray[Any, Any], saturate: bool, mode: str) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):
        lower = np.floor(np.log2(np.abs(array)))
        fraction = np.abs(array) / np.exp2(lower)
        higher = {"up": fraction > 1, "down": np.zeros_like(fraction, bool), "nearest": fraction >= 1.5}[mode]
        power = lower + higher
        power = np.clip(power, -127, 127) if saturate else np.where(power > 127, np.nan, np.maximum(power, -127))
        return np.where(np.isnan(array), np.nan, np.exp2(power)).astype(np.float32)


def _is_rounding(node: Node) -> bool:
    to = node.integer("to")
    return to in INTEGERS or to in SHORT_INTEGERS or to in SHORT_FLOATS


@operator("Cast", straight=_is_rounding, quantised="itself")
def cast_to(node: Node) -> Call:
    to = node.integer("to")
    if to == TensorProto.STRING or name_of(to).startswith("element"):
        raise ValueError(f"casts to {name_of(to)} are not supported")
    saturate, mode = bool(node.integer("saturate", 1)), node.text("round_mode", "up")
    return lambda value: cast(value, to, saturate=saturate, mode=mode)


@operator("CastLike", since=15, blind=(1,), quantised="itself")
def cast_like(node: Node) -> Call:
    saturate, mode = bool(node.integer("saturate", 1)), node.text("round_mode", "up")
    return lambda value, like: cast(value, element_type_of(like), saturate=saturate, mode=mode)


@operator("BitCast", since=1, differentiable=False)
def bit_cast(node: Node) -> Call:
    to = node.integer("to")

    def run(given: Tensor) -> Tensor:
        dtype = torch_type(to)
        if given.dtype == torch.bool or dtype == torch.bool:
            return given.view(torch.uint8).view(dtype)
        return given.view(dtype)

    return run
