"""Checks of a classifier's logits."""

from __future__ import annotations

from torch import Tensor

from ..errors import ClassifierError


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
