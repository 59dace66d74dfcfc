"""The range check as an operator, so that ``torch.compile`` keeps it in its graph instead of breaking the graph."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.pixels import Preprocessing, check_range, check_scale


def check_in_graph(images: Tensor, pixels: Tensor, preprocessing: Preprocessing, name: str) -> Tensor:
    """``pixels``, checked as ``check_scale`` and ``check_range`` do when the compiled graph runs."""
    exempt = preprocessing.mean or preprocessing.std
    zero: Tensor = torch.ops.purifier.check_images(
        images.detach(), pixels.detach(), 1.0 if exempt else preprocessing.scale, name
    )
    return pixels + zero  # so that the operator is not removed as unused


@torch.library.custom_op("purifier::check_images", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _check_images(images: Tensor, pixels: Tensor, scale: float, name: str) -> Tensor:
    check_scale(images, Preprocessing(scale=scale), name=name)
    check_range(pixels, name=name)
    return pixels.new_zeros(())


@_check_images.register_fake
def _(images: Tensor, pixels: Tensor, scale: float, name: str) -> Tensor:
    return pixels.new_zeros(())
