"""Largest elements, unique elements, and boxes that survive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator
from ..types import WIDENED


def _argument(largest: bool) -> Any:
    def build(node: Node) -> Call:
        axis, kept = node.integer("axis"), bool(node.integer("keepdims", 1))
        last = bool(node.integer("select_last_index"))

        def run(given: Tensor) -> Tensor:
            values = given.flip(axis) if last else given
            if values.dtype in WIDENED:
                values = values.long()
            # argmax does not say which of equal elements it takes; this is the first of them.
            best = values.amax(axis, keepdim=True) if largest else values.amin(axis, keepdim=True)
            found = (values == best).to(torch.uint8).argmax(axis, keepdim=kept)
            return given.shape[axis] - 1 - found if last else found

        return run

    return build


operator("ArgMax", differentiable=False)(_argument(True))
operator("ArgMin", differentiable=False)(_argument(False))


@operator("TopK", host=(1,), quantised="first")
def top_k(node: Node) -> Call:
    axis, largest = node.integer("axis", -1), bool(node.integer("largest", 1))
    known = node.integer("k") if node.has("k") else None

    def run(given: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
        size = known if known is not None else int(count)  # type: ignore[arg-type]  # given if not known
        values = given.long() if given.dtype in WIDENED else given
        # Of equal elements those with the lower index come first.
        values, index = values.sort(dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, size).to(given.dtype), index.narrow(axis, 0, size)

    return run


@operator("Unique", since=11, differentiable=False, shaped=False)
def unique(node: Node) -> Call:
    axis = node.integer("axis") if node.has("axis") else None
    ordered = bool(node.integer("sorted", 1))

    def run(given: Tensor) -> tuple[Tensor, ...]:
        values = given.reshape(-1) if axis is None else given
        along = 0 if axis is None else axis
        taken: Any = torch.unique(values, dim=along, return_inverse=True, return_counts=True)
        found, inverse, counts = taken
        size = found.shape[along]
        places = torch.arange(inverse.numel(), device=given.device)
        first = torch.full((size,), inverse.numel(), device=given.device)
        first = first.scatter_reduce(0, inverse.reshape(-1), places, "amin")
        if not ordered:
            order = first.argsort()
            found, first, counts = found.index_select(along, order), first[order], counts[order]
            rank = torch.empty_like(order)
            rank[order] = torch.arange(size, device=given.device)
            inverse = rank[inverse]
        return found, first, inverse.reshape(-1), counts

    return run


@operator("NonMaxSuppression", since=10, host=(2, 3, 4), differentiable=False, shaped=False)
def non_max_suppression(node: Node) -> Call:
    centers = bool(node.integer("center_point_box"))

    def run(boxes: Tensor, scores: Tensor, most: Any = None, overlap: Any = None, least: Any = None) -> Tensor:
        from torchvision.ops import nms

        limit = 0 if most is None else int(most)
        threshold = 0.0 if overlap is None else float(overlap)
        found = []
        for image in range(scores.shape[0]):
            corners = _corners(boxes[image], centers)
            for number in range(scores.shape[1]):
                score = scores[image, number]
                kept = torch.arange(len(score)) if least is None else (score > float(least)).nonzero().reshape(-1)
                chosen = kept[nms(corners[kept], score[kept], threshold)][:limit]
                found += [(image, number, int(box)) for box in chosen]
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)

    return run


def _corners(boxes: Tensor, centers: bool) -> Tensor:
    if centers:
        half = boxes[:, 2:] / 2
        return torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)
