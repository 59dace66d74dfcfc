"""What all conformance checks share: the error of a broken rule, images to check on, comparisons."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, *shape), dtype=np.float32))


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def span(values: Tensor) -> str:
    return f"[{values.min().item():.4g}, {values.max().item():.4g}]"


def check(holds: bool, rule: str, seen: object) -> None:
    if not holds:
        raise AssertionError(f"{rule}; got {seen}")
