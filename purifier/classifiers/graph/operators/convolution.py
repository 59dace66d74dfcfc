"""Convolutions, their transposes and deformable ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node
from ..table import Call, operator
from .windows import Windows, is_symmetric, surrounded

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def convolution(node: Node, weight_position: int = 1) -> Callable[..., Tensor]:
    """A function of images, weight and bias, for a node with the attributes of Conv."""
    groups = node.integer("group", 1)
    weight = node.constant(weight_position)
    kernel = node.integers("kernel_shape") or (list(weight.shape[2:]) if weight is not None else [])
    known = Windows.read(node, kernel) if kernel else None
    if known is not None and known.auto_pad in ("NOTSET", "VALID"):
        pads, rank = known.pads_for([]), len(kernel)
        if is_symmetric(pads) and rank in CONVOLUTIONS:
            convolve, padding = CONVOLUTIONS[rank], pads[:rank]
            strides, dilations = known.strides, known.dilations
            return lambda images, weight, bias=None: convolve(images, weight, bias, strides, padding, dilations, groups)

    def run(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        windows = known or Windows.read(node, weight.shape[2:])
        pads, rank = windows.pads_for(images.shape[2:]), len(windows.kernel)
        padding = pads[:rank]
        if not is_symmetric(pads):
            images, padding = surrounded(images, pads), [0] * rank
        return CONVOLUTIONS[rank](images, weight, bias, windows.strides, padding, windows.dilations, groups)

    return run


@operator("Conv")
def conv(node: Node) -> Call:
    return convolution(node)


@operator("ConvTranspose")
def conv_transpose(node: Node) -> Call:
    groups = node.integer("group", 1)

    def run(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        windows = Windows.read(node, weight.shape[2:])
        rank = len(windows.kernel)
        pads, extra = _transposed_padding(node, windows, images.shape[2:])
        full = TRANSPOSED[rank](images, weight, bias, windows.strides, 0, 0, groups, windows.dilations)
        # Cut or extended afterwards, because torch takes no padding that differs between the sides.
        made = surrounded(full, [0] * rank + [extra[axis] - pads[axis + rank] for axis in range(rank)])
        made = surrounded(made, [-pads[axis] for axis in range(rank)] + [0] * rank)
        if bias is not None and any(extra[axis] > pads[axis + rank] for axis in range(rank)):
            return _with_bias_in_border(made, full, bias, pads, rank)
        return made

    return run


def _transposed_padding(node: Node, windows: Windows, sizes: Any) -> tuple[list[int], list[int]]:
    """The padding to cut and the sizes to add, ONNX's specification of ConvTranspose."""
    rank = len(windows.kernel)
    extra = node.integers("output_padding") or [0] * rank
    wanted = node.integers("output_shape")[-rank:]
    if not wanted and windows.auto_pad.startswith("SAME"):
        wanted = [size * stride for size, stride in zip(sizes, windows.strides, strict=True)]
    if not wanted:
        return (windows.pads if windows.auto_pad == "NOTSET" else [0] * (2 * rank)), extra
    begins, ends = [], []
    for axis in range(rank):
        total = windows.strides[axis] * (sizes[axis] - 1) + extra[axis] + windows.extents[axis] - wanted[axis]
        half = int(total / 2)
        first = total - half if windows.auto_pad == "SAME_LOWER" else half
        begins.append(first)
        ends.append(total - first)
    return begins + ends, extra


def _with_bias_in_border(made: Tensor, full: Tensor, bias: Tensor, pads: list[int], rank: int) -> Tensor:
    """Output that no window reaches is the bias alone."""
    inside = surrounded(full.new_ones(full.shape[2:])[None, None], [0] * (2 * rank))
    before = [-pads[axis] for axis in range(rank)]
    after = [made.shape[axis + 2] + pads[axis] - full.shape[axis + 2] for axis in range(rank)]
    covered = surrounded(inside, before + after)
    return torch.where(covered > 0, made, bias.reshape(-1, *[1] * rank))


@operator("DeformConv", since=19)
def deformable(node: Node) -> Call:
    groups, offset_groups = node.integer("group", 1), node.integer("offset_group", 1)

    def run(images: Tensor, weight: Tensor, offset: Tensor, bias: Any = None, mask: Any = None) -> Tensor:
        from torchvision.ops import deform_conv2d

        windows = Windows.read(node, weight.shape[2:])
        pads = windows.pads
        if images.shape[1] != weight.shape[1] * groups or offset_groups < 1:
            raise ValueError("the channels do not fit the groups")
        if not is_symmetric(pads):
            raise ValueError(f"padding {pads} that differs between the sides is not supported")
        made: Tensor = deform_conv2d(images, offset, weight, bias, windows.strides, pads[:2], windows.dilations, mask)
        return made

    return run
