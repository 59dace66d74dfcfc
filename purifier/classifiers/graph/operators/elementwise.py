"""Functions of one tensor, element by element, and limits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator, simple
from ..types import WIDENED
from ..values import limited, straight_through
from .arithmetic import widened

PLAIN: dict[str, Call] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
for _name, _call in PLAIN.items():
    simple(_name, _call)
simple("Abs", widened(torch.abs))


def _rounding(call: Call) -> Call:
    def run(given: Tensor) -> Tensor:
        return straight_through(given, call(given.detach()))

    return run


simple("Ceil", _rounding(torch.ceil), straight=True)
simple("Floor", _rounding(torch.floor), straight=True)
simple("Round", _rounding(torch.round), straight=True)


@operator("Sign", straight=True)
def sign(node: Node) -> Call:
    """The gradient is that of the identity within [-1, 1], as in binary nets (Hubara et al., 2016, eq. 4)."""
    take = widened(torch.sign)

    def run(given: Tensor) -> Any:
        if not given.is_floating_point():
            return take(given)
        return straight_through(limited(given, -1, 1), torch.sign(given.detach()))

    return run


@operator("Clip", quantised="all")
def clip(node: Node) -> Call:
    if node.opset < 11:
        lowest, highest = node.attributes.get("min"), node.attributes.get("max")
        return lambda given: _limited(given, lowest, highest)
    known = [node.constant(place) if node.given(place) else None for place in (1, 2)]
    numbers = [None if bound is None else bound.item() for bound in known]
    if all(bound is not None or not node.given(place) for place, bound in zip((1, 2), known, strict=True)):
        return lambda given, *_: _limited(given, *numbers)
    return _limited


def _limited(given: Tensor, lowest: Any = None, highest: Any = None) -> Tensor:
    if lowest is None and highest is None:
        return given
    if given.dtype in WIDENED:
        bounds = [bound.long() if isinstance(bound, Tensor) else bound for bound in (lowest, highest)]
        return given.long().clamp(*bounds).to(given.dtype)
    if isinstance(lowest, Tensor) != isinstance(highest, Tensor) and None not in (lowest, highest):
        lowest, highest = (torch.as_tensor(bound, dtype=given.dtype) for bound in (lowest, highest))
    # Where the limits cross, the upper one holds, as in ONNX.
    return limited(given, lowest, highest)
