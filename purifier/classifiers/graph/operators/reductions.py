"""Sums, means, extremes and norms over axes, and cumulative ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..node import Node, integers_of
from ..table import Call, operator
from ..types import WIDENED

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _product(given: Tensor, axes: list[int], kept: bool) -> Tensor:
    for axis in sorted((axis % given.ndim for axis in axes), reverse=True):
        given = given.prod(axis, keepdim=kept)
    return given


def _largest(given: Tensor, axes: list[int], kept: bool) -> Tensor:
    return _extreme(given, axes, kept, highest=True)


def _smallest(given: Tensor, axes: list[int], kept: bool) -> Tensor:
    return _extreme(given, axes, kept, highest=False)


def _extreme(given: Tensor, axes: list[int], kept: bool, *, highest: bool) -> Tensor:
    if any(given.shape[axis] == 0 for axis in axes):  # of nothing: the identity of the operation
        places = {axis % given.ndim for axis in axes}
        sizes = [
            1 if place in places else size for place, size in enumerate(given.shape) if kept or place not in places
        ]
        if given.dtype == torch.bool:
            return given.new_full(sizes, not highest)
        info = torch.finfo(given.dtype) if given.is_floating_point() else torch.iinfo(given.dtype)
        edge = math.inf if given.is_floating_point() else info.max
        least = -math.inf if given.is_floating_point() else info.min
        return given.new_full(sizes, least if highest else edge)
    return given.amax(axes, kept) if highest else given.amin(axes, kept)


def _sum(given: Tensor, axes: list[int], kept: bool) -> Tensor:
    return given.sum(axes, keepdim=kept, dtype=given.dtype)


def _mean(given: Tensor, axes: list[int], kept: bool) -> Tensor:
    if given.is_floating_point():
        return given.mean(axes, keepdim=kept)
    return given.double().mean(axes, keepdim=kept).to(given.dtype)


def _norm(given: Tensor, axes: list[int], kept: bool) -> Tensor:
    if given.is_floating_point():
        norm: Tensor = torch.linalg.vector_norm(given, 2, axes, kept)
        return norm
    return given.double().square().sum(axes, kept).sqrt().to(given.dtype)


def _log_sum_exp(given: Tensor, axes: list[int], kept: bool) -> Tensor:
    return given.logsumexp(axes, kept) if given.is_floating_point() else given.double().logsumexp(axes, kept)


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda given, axes, kept: _sum(given.abs(), axes, kept),
    "ReduceL2": _norm,
    "ReduceLogSum": lambda given, axes, kept: _sum(given, axes, kept).log(),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceMin": _smallest,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda given, axes, kept: _sum(given.square(), axes, kept),
}


def _reducing(name: str) -> Callable[[Node], Call]:
    call = REDUCTIONS[name]

    def build(node: Node) -> Call:
        kept = bool(node.integer("keepdims", 1))
        known = node.integers("axes") if node.has("axes") else node.known_integers(1)
        nothing = bool(node.integer("noop_with_empty_axes"))

        def run(given: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = known if known is not None else [] if axes is None else integers_of(axes)
            if given.dtype in WIDENED:
                return reduced(given.long(), chosen).to(given.dtype)
            return reduced(given, chosen)

        def reduced(given: Tensor, chosen: list[int]) -> Tensor:
            if chosen or not nothing:
                return call(given, chosen or list(range(given.ndim)), kept)
            return call(given.unsqueeze(0), [0], False)  # each element alone

        return run

    return build


for _name in REDUCTIONS:
    operator(_name, host=(1,), quantised="first" if _name in ("ReduceMax", "ReduceMin") else "converts")(
        _reducing(_name)
    )


def _cumulative(call: Call) -> Callable[[Node], Call]:
    def build(node: Node) -> Call:
        exclusive, backwards = bool(node.integer("exclusive")), bool(node.integer("reverse"))

        def run(given: Tensor, axis: Tensor) -> Tensor:
            along = int(axis)
            values = given.flip(along) if backwards else given
            found: Tensor = call(values, along, dtype=given.dtype)
            if exclusive:
                first = torch.full_like(found.narrow(along, 0, 1), 0 if call is torch.cumsum else 1)
                found = torch.cat([first, found.narrow(along, 0, found.shape[along] - 1)], along)
            return found.flip(along) if backwards else found

        return run

    return build


operator("CumSum", since=11, host=(1,))(_cumulative(torch.cumsum))
operator("CumProd", since=26, host=(1,))(_cumulative(torch.cumprod))
