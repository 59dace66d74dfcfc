"""Elements written at indices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator
from .indexing import Prepared, split_index, wrapped

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(node: Node) -> Call:
    axis, reduction = node.integer("axis"), node.text("reduction", "none")

    prepare = Prepared(lambda index, shape: wrapped(index, shape[axis]))

    def run(given: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        places = prepare(index, given.shape)
        if reduction == "none":
            return given.scatter(axis, places, updates)
        return given.scatter_reduce(axis, places, updates, REDUCTIONS[reduction])

    return run


operator("Scatter", "ScatterElements", since=9, blind=(1,), quantised="all")(_scatter)


@operator("ScatterND", since=11, blind=(1,), quantised="all")
def scatter_nd(node: Node) -> Call:
    reduction, prepare = node.text("reduction", "none"), Prepared(_rows_of)

    def run(given: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        rows = given.reshape(given.shape[: index.shape[-1]].numel(), -1)
        target = prepare(index, given.shape).expand(-1, rows.shape[1])
        values = updates.reshape(-1, rows.shape[1])
        if reduction == "none":
            made = rows.scatter(0, target, values)
        else:
            made = rows.scatter_reduce(0, target, values, REDUCTIONS[reduction])
        return made.reshape(given.shape)

    return run


def _rows_of(index: Tensor, shape: torch.Size) -> Tensor:
    """Where the indices (..., k) lie among all combinations of the first k axes, (n, 1)."""
    places = torch.zeros(index.shape[:-1], dtype=torch.int64, device=index.device)
    for part, size in zip(split_index(index, shape), shape, strict=False):
        places = places * size + part
    return places.reshape(-1, 1)


@operator("TensorScatter", since=24, blind=(2,))
def tensor_scatter(node: Node) -> Call:
    axis, circular = node.integer("axis", -2), node.text("mode", "linear") == "circular"

    def run(past: Tensor, update: Tensor, starts: Any = None) -> Tensor:
        along = axis % past.ndim
        length, size = update.shape[along], past.shape[along]
        first = torch.zeros(past.shape[0], dtype=torch.int64, device=past.device) if starts is None else starts.long()
        places = first[:, None] + torch.arange(length, device=past.device)
        if circular:
            places = places % size
        sizes = [1] * past.ndim
        sizes[0], sizes[along] = past.shape[0], length
        return past.scatter(along, places.reshape(sizes).expand(update.shape), update)

    return run
