"""Find the logits in a classifier's output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ClassifierError


def logits_of(output: Any) -> Tensor:
    """The logits (N, K) in a classifier's output, which is a tensor, tuple, dict or dataclass.

    They are the entry called ``logits`` if there is one, else the first floats of shape (N, K) or (N, K, 1, 1).

    Raises
    ------
    ClassifierError
        There are none.
    """
    found = output
    if dataclasses.is_dataclass(found) and not isinstance(found, type | Mapping):
        found = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    if isinstance(found, Mapping):
        parts = [found["logits"]] if "logits" in found else list(found.values())
    else:
        parts = list(found) if isinstance(found, tuple | list) else [found]
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point() and part.ndim >= 2 and part.shape[2:].numel() == 1:
            return part.flatten(1)
    got = [f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    raise ClassifierError(f"the classifier must return logits, floats (N, K), got {', '.join(got) or 'nothing'}", "")


def one_row_per_image(logits: Tensor, pixels: Tensor) -> Tensor:
    """The logits (N, K), after checking that there is one row for each of ``pixels`` (N, C, H, W)."""
    if len(logits) != len(pixels):
        raise ClassifierError(
            f"the classifier must return one row of logits per image, got {len(logits)} rows for {len(pixels)} images",
            "",
        )
    return logits


def are_probabilities(output: Tensor) -> bool:
    """Whether outputs (N, K) are probabilities, as from a softmax, rather than logits."""
    sums = output.float().sum(1)
    return output.shape[1] > 1 and bool(output.amin() >= 0) and bool(((sums - 1).abs() < 1e-3).all())
