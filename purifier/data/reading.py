"""What can be read of a tensor while torch traces, transforms or captures a function: its bounds and its sizes."""

from __future__ import annotations

import torch
from torch import Tensor


def tracing() -> bool:
    """Whether ``torch.jit.trace`` runs."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]  # torch's own has no types


def capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is captured, where values can neither be read nor copied from the host."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def bounds_of(images: Tensor) -> tuple[float, float] | None:
    """The lowest and highest value, both NaN if any is; None if there are none or they cannot be read.

    They cannot be read from meta and fake tensors, under ``vmap``, while torch traces a function, and while it captures
    a CUDA graph.
    """
    if tracing() or capturing(images) or images.is_meta or images.numel() == 0:
        return None
    low, high = torch.aminmax(images.detach())
    try:
        bounds = low.item(), high.item()
    except RuntimeError:  # vmap, fake tensors and tracers say so in several ways; a failed device says so again
        return None
    return bounds if all(isinstance(bound, int | float) for bound in bounds) else None  # not if they are symbols


def sizes_of(values: Tensor) -> tuple[int | None, ...]:
    """A tensor's sizes; None for those that torch leaves free, which while ``torch.jit.trace`` runs is the first."""
    if not tracing():
        return tuple(size if type(size) is int else None for size in values.shape)
    return (None, *(len(values.unbind(place)) for place in range(1, values.ndim)))  # shape holds tensors then
