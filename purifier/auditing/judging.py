"""Judging: how often a model answers correctly, with noise that no attack has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..answering import answer, draw, purifier_input
from ..seeding import SampleGenerator, mix_seed
from .report import Model
from .setup import AuditSetup, Batch
from .subject import Given

CLEAN = "none"
"""What is judged when no attack changed the images; also the name of such rows."""


@dataclass(frozen=True)
class Judged:
    """The judge's results for n images, all on the CPU."""

    shares: Tensor
    """The share of judgements that count for the model, (n,) float64: those in which the image is right, and under
    attack also those in which it is marked as rejected."""
    right: Tensor
    """The share of judgements in which each image is right and not rejected, (n,) float64."""
    plain: Tensor
    """The share in which it would be right if nothing were rejected, (n,) float64: what a detector has to see."""
    rejected: Tensor | None
    """The share in which it is rejected, (n,) float64; None if the model marks no images as rejected."""
    scores: Tensor | None
    """The purifier's scores, (n,) float32; None for the undefended classifier, which has none."""
    answers: Tensor
    """The class answered in the first judgement, (n,) int64; -1 for none."""
    margins: Tensor
    """In the first judgement, the true class's logit minus the largest other, (n,) float32; NaN without an answer."""
    confidences: Tensor
    """In the first judgement, the softmax of the class answered, (n,) float32; NaN without an answer."""

    def worse_of(self, at: Tensor, other: Judged) -> Judged:
        """These results, with ``other``'s m at positions ``at`` (m,) wherever ``other`` counts less often."""
        worse = other.shares < self.shares[at]
        return self.replaced(at[worse], other.select(worse))

    def replaced(self, at: Tensor, other: Judged) -> Judged:
        """These results, with ``other``'s m at positions ``at`` (m,)."""

        def joined(name: str) -> Tensor | None:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None or theirs is None else mine.index_copy(0, at, theirs)

        return Judged._of(joined)

    def select(self, keep: Tensor) -> Judged:
        """The results of some of the images: ``keep`` is a mask (n,), or positions (m,)."""

        def kept(name: str) -> Tensor | None:
            values = getattr(self, name)
            return None if values is None else values[keep]

        return Judged._of(kept)

    @classmethod
    def _of(cls, value_of: Callable[[str], Tensor | None]) -> Judged:
        values = {field.name: value_of(field.name) for field in fields(cls)}
        return cls(**values)  # type: ignore[arg-type]  # a field that may be None is None in all results or in none


@torch.no_grad()
def judge(setup: AuditSetup, model: Model, batch: Batch, what: str) -> Judged:
    """How often each image is right, rejected, and what it scores; ``what`` is ``CLEAN`` or names the attack."""
    subject = setup.subjects[model]
    if not len(batch.labels):
        none, some = torch.zeros(0, dtype=torch.float64), torch.zeros(0)
        scores = some if model == "guarded" else None
        return Judged(none, none, none, none if subject.marks else None, scores, none.long(), some, some)
    rights, rejections, plains, first = [], [], [], None
    rejecting = model == "guarded" and setup.rejection.active
    for judgement in range(setup.judgements if model == "guarded" else 1):
        seed = mix_seed(setup.seed, "judge", what, judgement)
        given = subject.ask(batch.pixels, seed, batch.indices)
        first = first or given
        rights.append(given.right(batch.labels))
        plains.append(_plainly(setup, batch, seed) if rejecting else rights[-1])
        if given.rejected is not None:
            rejections.append(given.rejected)
    right, rejected = torch.stack(rights), torch.stack(rejections) if rejections else None
    score = subject.score(batch.pixels)
    assert first is not None
    answers, margins, confidences = first.said(batch.labels)
    return Judged(
        shares=_share(right if rejected is None or what == CLEAN else right | rejected),
        right=_share(right),
        plain=_share(torch.stack(plains)),
        rejected=None if rejected is None else _share(rejected),
        scores=None if score is None else score.cpu(),
        answers=answers.cpu(),
        margins=margins.cpu(),
        confidences=confidences.cpu(),
    )


def _plainly(setup: AuditSetup, batch: Batch, seed: int) -> Tensor:
    """Which images the classifier behind the purifier has right, whatever is rejected, bool (n,)."""
    pixels = purifier_input(batch.pixels, setup.purifier)
    noise = draw(setup.purifier, pixels, SampleGenerator(seed, batch.indices))
    return Given(answer(setup.purifier, setup.classifier, pixels, noise).output, None).right(batch.labels)


def _share(judgements: Tensor) -> Tensor:
    """Booleans (judgements, n) -> (n,) float64 on the CPU."""
    return judgements.double().mean(0).cpu()
