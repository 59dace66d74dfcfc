"""What an ONNX model says about images: its answers, and if it is an exported guard, scores and rejections."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Verdict(NamedTuple):
    """What an ONNX model says about N images."""

    logits: Tensor
    """(N, K)."""
    kept: Tensor
    """(N, K), as ``logits``, but those of rejected images too that an exported guard answers with NaN."""
    score: Tensor | None
    """Its own ``purifier_score``, (N,); None if it has none."""
    rejected: Tensor | None
    """Which images it marks as rejected, bool (N,); None if it marks none."""
