"""No answer: what a guard gives for a bad image where it cannot raise an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..containers import parts_of, with_part


def blanked(given: Any, bad: Tensor) -> Any:
    """A classifier's output with no answer for the bad images, bool (N,): a copy, of the same type.

    In every part with a row per image, floats become NaN and whole numbers, such as labels, the value of ``blank``.
    Other parts, and those nested deeper, stay as they are.

    Raises
    ------
    ClassifierError
        Nothing can be set in an output of this type.
    """
    for place, (_, value) in enumerate(parts_of(given)):
        if isinstance(value, Tensor) and value.dtype != torch.bool and _has_a_row_per_image(value, bad):
            shown = bad.view(-1, *[1] * (value.ndim - 1))
            given = with_part(given, place, value.masked_fill(shown, blank(value.dtype)))
    return given


def blank(dtype: torch.dtype) -> float:
    """What stands for no answer: NaN, -1, or the largest number of an unsigned type."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    limits = torch.iinfo(dtype)
    return -1 if limits.min < 0 else limits.max


def _has_a_row_per_image(value: Tensor, bad: Tensor) -> bool:
    if value.ndim == 0:
        return False
    size, count = value.shape[0], bad.shape[0]
    kinds = {type(size), type(count)}
    if kinds in ({int}, {torch.SymInt}):
        return bool(size == count)
    return kinds != {int, torch.SymInt}  # torch.jit.trace has tensors for sizes, whose values it warns about
