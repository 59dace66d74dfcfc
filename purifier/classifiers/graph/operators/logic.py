"""Comparisons, boolean and bitwise operators."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator, simple
from ..types import WIDENED
from .arithmetic import Pair, broadcast, widened

COMPARISONS: dict[str, Pair] = {
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
BITWISE: dict[str, Pair] = {
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
for _name, _pair in {**COMPARISONS, **BITWISE}.items():
    operator(_name, differentiable=False)(
        functools.partial(lambda node, pair: broadcast(node, widened(pair)), pair=_pair)
    )
simple("Not", torch.logical_not, differentiable=False)
simple("BitwiseNot", widened(torch.bitwise_not), differentiable=False)
simple("IsNaN", torch.isnan, differentiable=False)


@operator("IsInf", since=10, differentiable=False)
def is_infinite(node: Node) -> Call:
    below, above = node.integer("detect_negative", 1), node.integer("detect_positive", 1)

    def run(given: Tensor) -> Tensor:
        found = torch.isinf(given)
        if not below:
            found = found & (given > 0)
        return found if above else found & (given < 0)

    return run


@operator("BitShift", since=11, differentiable=False)
def bit_shift(node: Node) -> Call:
    left = node.text("direction") == "LEFT"

    def run(given: Tensor, places: Tensor) -> Tensor:
        first, second = given.long(), places.long()
        if left:
            shifted = torch.bitwise_left_shift(first, second)
        else:
            shifted = torch.bitwise_right_shift(first, second)
            if given.dtype == torch.uint64:  # of which int64 knows only the bits: no copies of the sign
                kept = torch.bitwise_not(torch.bitwise_left_shift(torch.full_like(first, -1), 64 - second))
                shifted = torch.where(second > 0, shifted & kept, shifted)
        return shifted.to(given.dtype)

    return run


@operator("Where", since=9, blind=(0,), quantised="all")
def where(node: Node) -> Call:
    def run(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
        if first.dtype in WIDENED:
            return torch.where(condition, first.long(), second.long()).to(first.dtype)
        return torch.where(condition, first, second)

    return run
