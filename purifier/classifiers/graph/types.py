"""Element types of ONNX as torch knows them, and the precision in which a graph is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from onnx import TensorProto

INTEGERS: dict[int, torch.dtype] = {
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.INT64: torch.int64,
}
FLOATS: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
}
"""Types that all are one type in a module that was converted, see ``float_type``."""
OTHERS: dict[int, torch.dtype] = {
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}
SHORT_INTEGERS: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT2: (-2, 1),
    TensorProto.UINT2: (0, 3),
}
"""Integers that torch has no arithmetic for, with their range."""
SHORT_FLOATS: dict[int, str] = {
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    TensorProto.FLOAT8E5M2: "float8_e5m2",
    TensorProto.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    TensorProto.FLOAT8E8M0: "float8_e8m0fnu",
    TensorProto.FLOAT4E2M1: "float4_e2m1fn",
}
"""Floats that torch has no arithmetic for, by their names in ml_dtypes."""
ELEMENT_TYPES = {dtype: number for table in (INTEGERS, FLOATS, OTHERS) for number, dtype in table.items()}
WIDENED = {torch.uint16, torch.uint32, torch.uint64}
"""Types for which torch can store numbers but lacks most arithmetic."""


class Setting(NamedTuple):
    """In which precision and on which device a graph is computed."""

    precision: torch.dtype | None
    """The type that all floats of the graph have; None if each has its own."""
    device: torch.device


_current: ContextVar[Setting] = ContextVar("setting", default=Setting(None, torch.device("cpu")))  # noqa: B039


def setting() -> Setting:
    """The setting that holds here."""
    return _current.get()


@contextmanager
def computing(precision: torch.dtype | None, device: torch.device) -> Iterator[None]:
    """Compute in this setting inside the ``with`` block."""
    token = _current.set(Setting(precision, device))
    try:
        yield
    finally:
        _current.reset(token)


def float_type(element_type: int) -> torch.dtype:
    """The torch type for FLOAT, FLOAT16, BFLOAT16 or DOUBLE: in a module that was converted, the one of its buffers."""
    return setting().precision or FLOATS[element_type]


def torch_type(element_type: int) -> torch.dtype:
    """The torch type for an element type, except the short ones.

    Raises
    ------
    ValueError
        torch has no such type.
    """
    if element_type in FLOATS:
        return float_type(element_type)
    found = INTEGERS.get(element_type) or OTHERS.get(element_type)
    if found is None:
        raise ValueError(f"no tensors of {name_of(element_type)}")
    return found


def name_of(element_type: int) -> str:
    """``uint8``, ``float16`` and so on, for messages."""
    known: dict[int, str] = {int(number): name.lower() for name, number in TensorProto.DataType.items()}
    return known.get(element_type, f"element type {element_type}")


def is_integer(element_type: int) -> bool:
    return element_type in INTEGERS or element_type in SHORT_INTEGERS


def range_of(element_type: int) -> tuple[int, int]:
    """The smallest and the largest number of an integer type."""
    if element_type in SHORT_INTEGERS:
        return SHORT_INTEGERS[element_type]
    found = torch.iinfo(INTEGERS[element_type])
    return found.min, found.max
