"""The logits in what a classifier returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ClassifierError


def logits_of(output: Any) -> Tensor:
    """The logits (N, K) in what a classifier returned: a tensor, tuple, dict or dataclass.

    What is called ``logits`` goes first, then the first floats that are (N, K), or (N, K, 1, 1).

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
    raise ClassifierError(f"the classifier must give logits, floats (N, K); it gives {', '.join(got) or 'nothing'}", "")


def _a_row_each(logits: Tensor, pixels: Tensor) -> Tensor:
    if len(logits) != len(pixels):
        raise ClassifierError(
            f"the classifier must give a row of logits for each image, it gives {len(logits)} for {len(pixels)}", ""
        )
    return logits


def are_probabilities(output: Tensor) -> bool:
    """Whether outputs (N, K) are probabilities, softmax's, and no logits."""
    sums = output.float().sum(1)
    return output.shape[1] > 1 and bool(output.amin() >= 0) and bool(((sums - 1).abs() < 1e-3).all())
