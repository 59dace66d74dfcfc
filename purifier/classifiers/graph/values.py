"""What flows through a graph: tensors, quantised numbers with gradients, lists for sequences, None for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from .types import ELEMENT_TYPES, INTEGERS, SHORT_FLOATS, SHORT_INTEGERS, is_integer, name_of, setting

Value: TypeAlias = Any
"""Tensor, ``Quantised``, list of values (a sequence), or None (an input or an optional that is absent)."""
EXACT_FLOAT32 = 2**24
"""Integers below this are exact in float32."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """Numbers of a type that cannot carry gradients in torch: integers and floats of eight bits and less.

    ``values`` holds exactly these numbers as float32 or float64, whatever precision the module has, so that gradients
    flow through. int32 sums that can exceed 2**24 are float64.
    """

    values: Tensor
    element_type: int
    """ONNX's number of the type that the graph says."""

    def genuine(self) -> Tensor:
        """The numbers in their own type, or for short types in int8, uint8 or float32, without gradients."""
        return self.values.detach().to(_stored_type(self.element_type))


class _Rounded(torch.autograd.Function):
    """A function without useful gradient, differentiated as the identity (Bengio et al., 2013, arXiv 1308.3432)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, with the gradient of ``exact``; same shape and dtype."""
    if not exact.requires_grad:
        return rounded
    found: Tensor = _Rounded.apply(exact, rounded.detach())
    return found


def rounded(exact: Tensor) -> Tensor:
    """The nearest integers, ties to even; straight-through."""
    return straight_through(exact, exact.detach().round())


class _Limited(torch.autograd.Function):
    """Limits of which neither carries a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(given: Tensor, lowest: Any, highest: Any) -> Tensor:
        return given.clamp(lowest, highest)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        given, lowest, highest = inputs
        inside = torch.ones_like(given, dtype=torch.bool) if lowest is None else given >= lowest
        ctx.save_for_backward(inside if highest is None else inside & (given <= highest))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0] * ctx.saved_tensors[0], None, None


def limited(given: Tensor, lowest: Any, highest: Any) -> Tensor:
    """``given.clamp(lowest, highest)``, with the gradient of the identity on the limits too.

    torch has none there, and half of it if the limits are tensors. But black and white pixels lie on the limits of the
    Clip with which an image is often received, and would have no gradient.
    """
    if not given.requires_grad or any(isinstance(bound, Tensor) and bound.requires_grad for bound in (lowest, highest)):
        return given.clamp(lowest, highest)
    found: Tensor = _Limited.apply(given, lowest, highest)
    return found


def wide(values: Tensor) -> Tensor:
    """As floats in which numbers of 16 bits are exact: float64 if they are, else float32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def numbers(value: Tensor | Quantised) -> Tensor:
    """The numbers of an integer value as floats that hold them exactly, with gradients if there are any."""
    if isinstance(value, Quantised):
        return value.values
    if value.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64):
        return value.double()
    return value.double() if setting().precision == torch.float64 else wide(value)


def element_type_of(value: Tensor | Quantised) -> int:
    return value.element_type if isinstance(value, Quantised) else ELEMENT_TYPES[value.dtype]


def genuine(value: Value) -> Value:
    """A value in the type that the graph says, without ``Quantised``."""
    return value.genuine() if isinstance(value, Quantised) else value


def moved(value: Value, device: torch.device) -> Value:
    """A value on another device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Quantised):
        return Quantised(value.values.to(device, non_blocking=True), value.element_type)
    if isinstance(value, list):
        return [moved(part, device) for part in value]
    return value


def is_on_cpu(value: Value) -> bool:
    held = value.values if isinstance(value, Quantised) else value
    return not isinstance(held, Tensor) or held.device.type == "cpu"


def read_tensor(tensor: TensorProto) -> Tensor | Quantised:
    """A stored tensor as a value on the CPU.

    Raises
    ------
    ValueError
        It holds text.
    """
    if tensor.data_type == TensorProto.STRING:
        raise ValueError(f"the tensor {tensor.name!r} holds text")
    return from_array(numpy_helper.to_array(tensor), tensor.data_type)


def from_array(array: np.ndarray[Any, Any], element_type: int) -> Tensor | Quantised:
    """An array as onnx reads it from a tensor of this type, as a value on the CPU."""
    if element_type in SHORT_INTEGERS or element_type in SHORT_FLOATS:
        return Quantised(torch.from_numpy(array.astype(np.float32)), element_type)
    if element_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(ml_dtypes.bfloat16).view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype == object:
        raise ValueError(f"an array of {name_of(element_type)} has no numbers")
    native = array.astype(array.dtype.newbyteorder("="), copy=True)
    return torch.from_numpy(native)


def _stored_type(element_type: int) -> torch.dtype:
    if element_type in INTEGERS:
        return INTEGERS[element_type]
    if is_integer(element_type):
        return torch.int8 if element_type in (TensorProto.INT4, TensorProto.INT2) else torch.uint8
    return torch.float32
