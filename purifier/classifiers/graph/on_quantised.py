"""How operators that do not know ``Quantised`` treat it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .table import Call, OnQuantised
from .types import is_integer, range_of
from .values import Quantised, genuine, numbers


def adapted(call: Call, how: OnQuantised) -> Call:
    """A function that takes ``Quantised`` inputs, from one that takes tensors only; see ``table.Operator``."""
    match how:
        case "itself":
            return call
        case "first":
            return _on_first(call)
        case "all" | "wraps":
            return _on_all(call, wraps=how == "wraps")
    return _converting(call)


def _converting(call: Call) -> Call:
    def run(*given: Any) -> Any:
        for value in given:
            if type(value) is Quantised:
                return call(*[genuine(value) for value in given])
        return call(*given)

    return run


def _on_first(call: Call) -> Call:
    def run(*given: Any) -> Any:
        if type(given[0]) is not Quantised:
            return call(*[genuine(value) for value in given])
        kind = given[0].element_type
        others = [_as_floats(value, kind) for value in given[1:]]
        return _wrapped(call(given[0].values, *others), kind)

    return run


def _on_all(call: Call, *, wraps: bool) -> Call:
    def run(*given: Any) -> Any:
        kinds = [value.element_type for value in given if type(value) is Quantised]
        if not kinds:
            return call(*given)
        found = call(*[_number(value) for value in given])
        return _wrapped(_around(found, kinds[0]) if wraps else found, kinds[0])

    return run


def _as_floats(value: Any, kind: int) -> Any:
    """A further input of the same type as the first (a padding value, for one) as floats; others as they are."""
    if type(value) is Quantised:
        return value.values if value.element_type == kind else value.genuine()
    return value


def _number(value: Any) -> Any:
    return numbers(value) if isinstance(value, Tensor | Quantised) and _is_number(value) else value


def _is_number(value: Tensor | Quantised) -> bool:
    return isinstance(value, Quantised) or value.dtype != torch.bool


def _wrapped(found: Any, kind: int) -> Any:
    """Floats among the outputs as ``Quantised``."""
    if type(found) is tuple:
        return tuple(_wrapped(part, kind) for part in found)
    if isinstance(found, list):
        return [_wrapped(part, kind) for part in found]
    return Quantised(found, kind) if found.is_floating_point() else found


def _around(found: Tensor, kind: int) -> Tensor:
    """Numbers in the range of their type, beyond whose end they begin anew."""
    if not is_integer(kind):
        return found
    low, high = range_of(kind)
    return found + ((found.detach() - low).remainder(high - low + 1) + low - found.detach())
