"""What an ONNX model says about images: its answers, and if it is an exported guard, scores and rejections."""

from __future__ import annotations

from typing import NamedTuple

from onnx import ModelProto
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


class Policy(NamedTuple):
    """What an ONNX model says about rejections, if it is an exported guard."""

    abstains: bool
    """Whether rejected images get NaN."""
    answers_all: bool
    """Whether rejected images are answered like others: their answers count."""
    threshold: float | None
    """The score above which images are rejected."""


def policy_of(model: ModelProto) -> Policy:
    """Read it from the model's metadata."""
    facts = {entry.key: entry.value for entry in model.metadata_props}
    said = facts.get("purifier.on_reject", "ignore" if "purifier.format" in facts else "")
    abstains = said == "abstain" and "purifier.abstain" not in facts
    answers_all = said in ("ignore", "reclassify", "abstain") and not abstains
    return Policy(abstains, answers_all, float(facts["purifier.threshold"]) if "purifier.threshold" in facts else None)
