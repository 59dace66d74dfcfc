"""Images sampled at given points."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..node import Node, integers_of
from ..table import Call, operator

MODES = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample", since=16)
def grid_sample(node: Node) -> Call:
    mode = node.text("mode", "linear")
    mode, border = MODES.get(mode, mode), node.text("padding_mode", "zeros")
    corners = bool(node.integer("align_corners"))

    def run(images: Tensor, grid: Tensor) -> Tensor:
        return functional.grid_sample(images, grid, mode, border, corners)

    return run


@operator("AffineGrid", since=20, host=(1,))
def affine_grid(node: Node) -> Call:
    corners = bool(node.integer("align_corners"))

    def run(theta: Tensor, size: Tensor) -> Tensor:
        return functional.affine_grid(theta, integers_of(size), corners)

    return run
