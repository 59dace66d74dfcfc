"""Shapes, and the same elements in another one."""

from __future__ import annotations

import math

import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from ..node import Node, integers_of
from ..table import Call, operator, simple
from ..types import FLOATS, setting, torch_type
from ..values import Quantised, read_tensor

simple("Identity", lambda given: given, quantised="itself")


@operator("Constant")
def constant(node: Node) -> Call:
    name, value = next(iter(node.attributes.items()))
    match name:
        case "value":
            made = read_tensor(value)
        case "value_float" | "value_floats":
            made = torch.tensor(value, dtype=torch.float32)
        case "value_int" | "value_ints":
            made = torch.tensor(value, dtype=torch.int64)
        case _:
            raise ValueError(f"constants given as {name} are not supported")
    return lambda: made


@operator("ConstantOfShape", since=9, host=(0,))
def constant_of_shape(node: Node) -> Call:
    if node.has("value"):
        tensor = node.attributes["value"]
        fill, kind = numpy_helper.to_array(tensor).reshape(-1)[0].item(), tensor.data_type
    else:
        fill, kind = 0.0, TensorProto.FLOAT

    def run(shape: Tensor) -> Tensor:
        # Integers are mostly parts of shapes, and stay where those are.
        device = setting().device if kind in FLOATS else "cpu"
        return torch.full(integers_of(shape), fill, dtype=torch_type(kind), device=device)

    return run


@operator("Shape", quantised="itself", differentiable=False)
def shape_of(node: Node) -> Call:
    start, end = node.integer("start"), node.attributes.get("end")

    def run(given: Tensor | Quantised) -> Tensor:
        held = given.values if isinstance(given, Quantised) else given
        return torch.tensor(held.shape[start:end], dtype=torch.int64)

    return run


@operator("Size", quantised="itself", differentiable=False)
def size_of(node: Node) -> Call:
    def run(given: Tensor | Quantised) -> Tensor:
        held = given.values if isinstance(given, Quantised) else given
        return torch.tensor(held.numel(), dtype=torch.int64)

    return run


@operator("Reshape", host=(1,), quantised="first")
def reshape(node: Node) -> Call:
    known = node.integers("shape") if node.has("shape") else node.known_integers(1)
    zero_is_size = bool(node.integer("allowzero"))
    if known is not None and (zero_is_size or 0 not in known):
        return lambda given, *_: given.reshape(known)

    def run(given: Tensor, shape: Tensor | None = None) -> Tensor:
        sizes = known if known is not None else integers_of(shape)  # type: ignore[arg-type]  # given if not known
        if not zero_is_size:
            sizes = [given.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
        return given.reshape(sizes)

    return run


@operator("Flatten", quantised="first")
def flatten(node: Node) -> Call:
    axis = node.integer("axis", 1)
    if axis == 1:
        return lambda given: (
            given.flatten(1) if given.ndim > 1 else given.reshape(given.shape[0] if given.ndim else 1, 1)
        )

    def run(given: Tensor) -> Tensor:
        place = axis + given.ndim if axis < 0 else axis
        return given.reshape(math.prod(given.shape[:place]), math.prod(given.shape[place:]))

    return run


@operator("Transpose", quantised="first")
def transpose(node: Node) -> Call:
    order = node.integers("perm")
    if order:
        return lambda given: given.permute(order)
    return lambda given: given.permute(*range(given.ndim - 1, -1, -1))


def axes_of(node: Node, position: int = 1) -> list[int] | None:
    """Axes that are known beforehand, as an attribute of old opsets or a constant input."""
    return node.integers("axes") if node.has("axes") else node.known_integers(position)


@operator("Squeeze", host=(1,), quantised="first")
def squeeze(node: Node) -> Call:
    known = axes_of(node)

    def run(given: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = known if known is not None else None if axes is None else integers_of(axes)
        return given.squeeze() if chosen is None else given.squeeze(tuple(chosen))

    return run


@operator("Unsqueeze", host=(1,), quantised="first")
def unsqueeze(node: Node) -> Call:
    known = axes_of(node)
    if known is not None and len(known) == 1:
        axis = known[0]
        return lambda given, *_: given.unsqueeze(axis)

    def run(given: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = known if known is not None else integers_of(axes)  # type: ignore[arg-type]  # given if not known
        rank = given.ndim + len(chosen)
        for axis in sorted(axis % rank for axis in chosen):
            given = given.unsqueeze(axis)
        return given

    return run


@operator("Expand", since=8, host=(1,), quantised="first")
def expand(node: Node) -> Call:
    known = node.known_integers(1)

    def run(given: Tensor, shape: Tensor) -> Tensor:
        sizes = known if known is not None else integers_of(shape)
        own = [1] * (len(sizes) - given.ndim) + list(given.shape)
        wanted = [1] * (given.ndim - len(sizes)) + list(sizes)
        return given.expand([had if size == 1 else size for had, size in zip(own, wanted, strict=True)])

    return run


@operator("Tile", since=6, host=(1,), quantised="first")
def tile(node: Node) -> Call:
    known = node.known_integers(1)
    return lambda given, repeats: given.repeat(known if known is not None else integers_of(repeats))


@operator("Concat", quantised="all")
def concat(node: Node) -> Call:
    axis = node.integer("axis", 1)
    return lambda *given: torch.cat(given, axis)


@operator("Split", host=(1,), quantised="first")
def split(node: Node) -> Call:
    axis, count = node.integer("axis"), node.integer("num_outputs", len(node.outputs))
    known = node.integers("split") if node.has("split") else node.known_integers(1)

    def run(given: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        if known is not None:
            return torch.split(given, known, axis)
        if sizes is not None:
            return torch.split(given, integers_of(sizes), axis)
        length = given.shape[axis]
        part = -(-length // count)
        lengths = [max(0, min(part, length - place * part)) for place in range(count)]
        return torch.split(given, lengths, axis)

    return run


@operator("DepthToSpace", quantised="first")
def depth_to_space(node: Node) -> Call:
    block, column_first = node.integer("blocksize"), node.text("mode", "DCR") == "CRD"

    def run(given: Tensor) -> Tensor:
        count, channels, height, width = given.shape
        kept = channels // block**2
        if column_first:
            parts = given.reshape(count, kept, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
        else:
            parts = given.reshape(count, block, block, kept, height, width).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(count, kept, height * block, width * block)

    return run


@operator("SpaceToDepth", quantised="first")
def space_to_depth(node: Node) -> Call:
    block, column_first = node.integer("blocksize"), node.text("mode", "DCR") == "CRD"

    def run(given: Tensor) -> Tensor:
        count, channels, height, width = given.shape
        parts = given.reshape(count, channels, height // block, block, width // block, block)
        order = (0, 1, 3, 5, 2, 4) if column_first else (0, 3, 5, 1, 2, 4)
        return parts.permute(order).reshape(count, channels * block**2, height // block, width // block)

    return run


@operator("Range", since=11, host=(0, 1, 2), differentiable=False)
def range_between(node: Node) -> Call:
    def run(start: Tensor, limit: Tensor, delta: Tensor, *_: Tensor) -> Tensor:
        first, end, step = (value.item() for value in (start, limit, delta))
        count = max(0, math.ceil((end - first) / step))
        dtype = start.dtype
        inner = dtype if dtype.is_floating_point and dtype.itemsize >= 4 else None
        steps = torch.arange(count, dtype=inner or torch.int64, device=start.device)
        return (steps * step + first).to(dtype)

    return run


@operator("EyeLike", since=9, differentiable=False)
def eye_like(node: Node) -> Call:
    kind, diagonal = node.attributes.get("dtype"), node.integer("k")

    def run(given: Tensor) -> Tensor:
        dtype = given.dtype if kind is None else torch_type(kind)
        made = torch.zeros(given.shape, dtype=dtype, device=given.device)
        along = made.diagonal(diagonal) if -given.shape[0] < diagonal < given.shape[1] else made[:0, 0]
        along.fill_(1)
        return made

    return run


@operator("Trilu", since=14, host=(1,), quantised="first")
def triangle(node: Node) -> Call:
    upper = bool(node.integer("upper", 1))

    def run(given: Tensor, diagonal: Tensor | None = None) -> Tensor:
        place = 0 if diagonal is None else int(diagonal)
        return given.triu(place) if upper else given.tril(place)

    return run
