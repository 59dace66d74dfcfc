"""Judging: how often the guard answers correctly, with noise that no attack has seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..answering import answer, draw
from ..seeding import SampleGenerator, mix_seed
from .report import Model
from .setup import AuditSetup, Batch


@dataclass(frozen=True)
class Judged:
    """The judge's results for n images."""

    shares: Tensor
    """The share of judgements in which each was right, (n,) float64, on the CPU."""
    scores: Tensor | None
    """The purifier's scores, (n,) float32, on the CPU; None for the undefended classifier, which has none."""

    def worse_of(self, at: Tensor, other: Judged) -> Judged:
        """These results, with ``other``'s m at positions ``at`` (m,) wherever ``other`` is right less often."""
        worse = other.shares < self.shares[at]
        return self.replaced(at[worse], other.select(worse))

    def replaced(self, at: Tensor, other: Judged) -> Judged:
        """These results, with ``other``'s m at positions ``at`` (m,)."""
        shares = self.shares.index_copy(0, at, other.shares)
        if self.scores is None or other.scores is None:
            return Judged(shares, None)
        return Judged(shares, self.scores.index_copy(0, at, other.scores))

    def select(self, keep: Tensor) -> Judged:
        """The results of some of the images: ``keep`` is a mask (n,)."""
        return Judged(self.shares[keep], None if self.scores is None else self.scores[keep])


@torch.no_grad()
def judge(setup: AuditSetup, model: Model, batch: Batch, what: str) -> Judged:
    """How often each image is right, with noise that no attack has seen, and its score if the model is guarded."""
    pixels, labels = batch.pixels, batch.labels
    if not len(labels):
        return Judged(torch.zeros(0, dtype=torch.float64), None if model == "undefended" else torch.zeros(0))
    if model == "undefended":
        right = _right(setup.classifier(pixels), labels)  # the preprocessing rounds for uint8 classifiers
        return Judged(right.double().cpu(), None)
    if setup.classifier.preprocessing.dtype == "uint8":
        pixels = (pixels * 255).round() / 255  # users pass uint8 images to such a guard
    rights, score = [], None
    for judgement in range(setup.judgements):
        generator = SampleGenerator(mix_seed(setup.seed, "judge", what, judgement), batch.indices)
        noise = draw(setup.purifier, pixels, generator)
        # The score depends on the image alone, so one judgement is enough.
        answered = answer(setup.purifier, setup.classifier, pixels, noise, scored=score is None)
        score = answered.score if score is None else score
        rights.append(_right(answered.output, labels))
    assert score is not None
    return Judged(torch.stack(rights).double().mean(0).cpu(), score.float().cpu())


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which images are right, bool (N,); NaN logits never are."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)
