"""Poolings over regions of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator


@operator("RoiAlign", blind=(1, 2))
def roi_align(node: Node) -> Call:
    size = node.integer("output_height", 1), node.integer("output_width", 1)
    ratio, scale = node.integer("sampling_ratio"), node.number("spatial_scale", 1.0)
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    aligned = node.text("coordinate_transformation_mode", default) == "half_pixel"
    highest = node.text("mode", "avg") == "max"

    def run(images: Tensor, boxes: Tensor, index: Tensor) -> Tensor:
        if highest:
            return torch.cat([_largest(images[int(i)], box) for i, box in zip(index, boxes, strict=True)])
        from torchvision.ops import roi_align as align

        made: Tensor = align(images, torch.cat([index[:, None].to(boxes), boxes], 1), size, scale, ratio or -1, aligned)
        return made

    def _largest(image: Tensor, box: Tensor) -> Tensor:
        """The largest of the samples in each bin, and in each sample, of its four weighted neighbours."""
        offset = 0.5 if aligned else 0.0
        left, top, right, bottom = (box * scale - offset).unbind()
        width, height = right - left, bottom - top
        if not aligned:
            width, height = width.clamp_min(1), height.clamp_min(1)
        grids = []
        for start, length, bins, edge in (
            (top, height, size[0], image.shape[1]),
            (left, width, size[1], image.shape[2]),
        ):
            samples = ratio or int(torch.ceil(length / bins))
            steps = (torch.arange(bins * samples, device=image.device) + 0.5) * (length / bins / samples) + start
            grids.append((steps, samples, edge))
        return _best_samples(image, *grids)

    return run


def _best_samples(image: Tensor, rows: Any, columns: Any) -> Tensor:
    (ys, per_row, height), (xs, per_column, width) = rows, columns
    parts = []
    for coordinates, edge in ((ys, height), (xs, width)):
        valid = (coordinates >= -1) & (coordinates <= edge)
        inside = coordinates.clamp(0, edge - 1)
        low = inside.floor().long()
        parts.append((low, (low + 1).clamp_max(edge - 1), inside - low, valid))
    (y0, y1, dy, y_valid), (x0, x1, dx, x_valid) = parts
    found = torch.stack(
        [
            image[:, y][:, :, x] * (wy[:, None] * wx)
            for y, wy in ((y0, 1 - dy), (y1, dy))
            for x, wx in ((x0, 1 - dx), (x1, dx))
        ]
    ).amax(0)
    found = torch.where(y_valid[:, None] & x_valid, found, 0.0)
    bins = found.reshape(len(found), -1, per_row, found.shape[2] // per_column, per_column)
    return bins.amax((2, 4))[None]


@operator("MaxRoiPool", blind=(1,))
def max_roi_pool(node: Node) -> Call:
    size, scale = node.integers("pooled_shape"), node.number("spatial_scale", 1.0)

    def run(images: Tensor, boxes: Tensor) -> Tensor:
        from torchvision.ops import roi_pool

        made: Tensor = roi_pool(images, boxes, tuple(size), scale)
        return made

    return run
