"""Norms of the images of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..vocabulary import Norm

ORDERS: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm (N,) of each image of (N, ...)."""
    if norm == "l1":
        total: Tensor = delta.flatten(1).abs().sum(1)  # vector_norm sums one by one, with an error of 1e-5 at 12
        return total
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=ORDERS[norm], dim=1)
    return length


def scale_like(values: Tensor, images: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to scale each image by its own number."""
    return values.view(-1, *(1,) * (images.ndim - 1))
