"""Sums, products, powers and remainders of two or more tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator, simple
from ..types import WIDENED

Pair = Callable[[Tensor, Tensor], Tensor]


def widened(call: Call) -> Call:
    """A function of tensors that also takes unsigned types for which torch has no arithmetic."""

    def run(*given: Tensor) -> Tensor:
        dtype = given[0].dtype
        if dtype in WIDENED:
            found: Tensor = call(*[value.to(torch.int64) for value in given])
            return found if found.dtype == torch.bool else found.to(dtype)
        return call(*given)  # type: ignore[no-any-return]  # torch's functions

    return run


def broadcast(node: Node, call: Pair) -> Call:
    """A function of two tensors; before opset 7 the second was aligned with ``axis`` of the first."""
    if node.opset >= 7 or not node.integer("broadcast") or not node.has("axis"):
        return call
    axis = node.integer("axis")

    def run(first: Tensor, second: Tensor) -> Tensor:
        start = axis % first.ndim
        tail = first.ndim - start - second.ndim
        return call(first, second.reshape(*second.shape, *[1] * tail))

    return run


def _divided(first: Tensor, second: Tensor) -> Tensor:
    if first.is_floating_point():
        return first / second
    return torch.div(first, second, rounding_mode="trunc")


for _name, _pair in {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divided}.items():
    operator(_name, quantised="converts" if _name == "Div" else "wraps")(
        functools.partial(lambda node, pair: broadcast(node, widened(pair)), pair=_pair)
    )


@operator("Pow")
def power(node: Node) -> Call:
    exponent = node.constant(1)
    if exponent is not None and exponent.numel() == 1 and exponent.ndim <= 1:
        number = exponent.item()

        def run(base: Tensor, _: Tensor) -> Tensor:
            if not base.is_floating_point() and exponent.is_floating_point():
                return base.double().pow(number).to(base.dtype)
            found = base.square() if number == 2 else base.pow(number)
            return found.to(base.dtype)

        return run

    def general(base: Tensor, exponent: Tensor) -> Tensor:
        if base.is_floating_point():
            return base.pow(exponent.to(base.dtype))
        if exponent.is_floating_point():
            return base.double().pow(exponent.double()).to(base.dtype)
        return base.long().pow(exponent.long()).to(base.dtype)

    return broadcast(node, general)


@operator("Mod")
def remainder(node: Node) -> Call:
    return widened(torch.fmod if node.integer("fmod") else torch.remainder)


def _of_many(pair: Pair) -> Call:
    combine = widened(pair)

    def run(*given: Tensor) -> Tensor:
        return functools.reduce(combine, given)

    return run


def _mean(*given: Tensor) -> Tensor:
    return functools.reduce(torch.add, given) / len(given)


simple("Max", _of_many(torch.maximum), quantised="all")
simple("Min", _of_many(torch.minimum), quantised="all")
simple("Sum", _of_many(torch.add))
simple("Mean", _mean)
