"""The lowest and highest value of an image tensor, where values can be read."""

from __future__ import annotations

import torch
from torch import Tensor


def bounds_of(images: Tensor) -> tuple[float, float] | None:
    """The lowest and highest value, both NaN if any is; None if there are none or they cannot be read.

    They cannot be read from meta and fake tensors, under ``vmap``, while torch traces a function, and while it captures
    a CUDA graph.
    """
    if torch.jit.is_tracing() or images.is_meta or images.numel() == 0:
        return None
    if images.is_cuda and torch.cuda.is_current_stream_capturing():
        return None  # reading would break the capture
    low, high = torch.aminmax(images.detach())
    try:
        return low.item(), high.item()
    except RuntimeError:  # vmap, fake tensors and tracers say so in several ways; a failed device says so again
        return None
