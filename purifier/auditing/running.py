"""Runs the jobs of an audit: craft and judge, one batch at a time; what a journal has is not run again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..attacking.target import Spent
from ..data.images import ImageData
from ..errors import AuditError, DataError
from ..foreign_code import Attempt, explained
from .crafting import craft
from .data_digest import DataDigest
from .journal import Journal
from .judging import CLEAN, Judged, judge
from .outcome import CleanOutcome, Outcome
from .plan import Job
from .proofs import NO_PROOFS, Proofs
from .report import Model
from .setup import AuditSetup, Batch
from .tally import Tally
from .watching import ProgressFailed, Watch


class _Images:
    """A batch that is read when something first needs its pixels, and compared with what was read before the audit."""

    def __init__(self, setup: AuditSetup, data: ImageData, indices: Sequence[int], digest: DataDigest) -> None:
        self._setup, self._data, self._digest = setup, data, digest
        self.indices, self.name = indices, data.name

    @cached_property
    def batch(self) -> Batch:
        found = self._setup.batch(self._data, self.indices)
        if not self._digest.has(self.indices, found.pixels, found.labels):
            first, last = self.indices[0], self.indices[-1]
            raise DataError(
                f"{self.name}: images {first} to {last} are not those that were read before; data must give the "
                "same images each time, so leave out random transforms, and do not change files during an audit",
                self.name,
            )
        return found


def run_jobs(
    setup: AuditSetup,
    data: ImageData,
    digest: DataDigest,
    tally: Tally,
    watch: Watch,
    journal: Journal,
    proofs: Proofs = NO_PROOFS,
) -> None:
    """Run all jobs on all batches of the audit's images, and tell ``tally`` and ``journal``."""
    try:
        for indices in batches_of(tally.about.span, setup.batch_size):
            _run_batch(setup, _Images(setup, data, indices, digest), tally, watch, journal, proofs)
        watch.end("looking for flags" if tally.jobs else "done")
    except ProgressFailed as failed:
        raise failed.error from None


def batches_of(span: range, batch_size: int) -> Iterator[range]:
    """The positions of the images of each batch."""
    for start in range(span.start, span.stop, batch_size):
        yield range(start, min(start + batch_size, span.stop))


def _run_batch(
    setup: AuditSetup, images: _Images, tally: Tally, watch: Watch, journal: Journal, proofs: Proofs
) -> None:
    start = images.indices[0]
    watch.batch(len(images.indices))
    clean = journal.clean(start)
    if clean is None:
        clean = _judge_clean(setup, images, proofs)
        journal.add_clean(start, clean)
    tally.begin(clean)
    watch.clean(clean.judged[setup.model].shares)
    for number, job in enumerate(tally.jobs):
        failure = tally.failure(number)
        at = tally.attackable(number) if failure is None else torch.zeros(0, dtype=torch.long)
        watch.job(number, job, len(at))
        outcome = journal.outcome(start, number)
        if outcome is None:
            if failure is None:
                outcome = _attack(setup, job, tally.models(number), images.batch.select(at), at, watch)
            else:
                outcome = Outcome.failure(failure)
            journal.add(start, number, outcome.holding(tally.add(number, outcome)))
        else:
            watch.took(outcome.spent.queries, outcome.crafting + sum(outcome.judging))
            tally.add(number, outcome)
        for model, judged in zip(tally.models(number), outcome.judged, strict=False):
            if model == setup.model:
                watch.judged(job.threat, at, judged.shares)


def _judge_clean(setup: AuditSetup, images: _Images, proofs: Proofs) -> CleanOutcome:
    batch = images.batch
    judged: dict[Model, Judged] = {}
    seconds: dict[Model, float] = {}
    for model in setup.subjects:
        began = time.perf_counter()
        failure = f"the {model} classifier fails on clean images of {images.name}"
        with explained(failure, AuditError, "fix it; nothing was attacked"):
            judged[model] = judge(setup, model, batch, CLEAN)
        seconds[model] = time.perf_counter() - began
    return CleanOutcome(batch.labels, judged, seconds, proofs.of(batch, judged[setup.model].answers))


def _attack(setup: AuditSetup, job: Job, models: Sequence[Model], attacked: Batch, at: Tensor, watch: Watch) -> Outcome:
    """Attack the images ``attacked``, which are at positions ``at`` (n,) of a batch, and judge what was found."""
    spent, began = Spent(on_query=watch.on_query), time.perf_counter()
    found = attacked.pixels
    judged: list[Judged] = []
    judging: list[float] = []
    if len(at):
        with Attempt() as attempt:
            found = craft(setup, job, attacked, spent)
        if attempt.error is not None:
            return Outcome.failure(attempt.cause)
    crafting = time.perf_counter() - began
    for model in models:
        began = time.perf_counter()
        with Attempt() as attempt:
            judged.append(_judge(setup, job, model, attacked, found))
        judging.append(time.perf_counter() - began)
        if attempt.error is not None:
            return Outcome.failure(f"judging failed: {attempt.cause}")
    indices, labels = attacked.indices, attacked.labels
    return Outcome(at, indices, labels, spent, crafting, judged, judging, None, range(len(at)), attacked.pixels, found)


def _judge(setup: AuditSetup, job: Job, model: Model, attacked: Batch, found: Tensor) -> Judged:
    judged = judge(setup, model, dataclasses.replace(attacked, pixels=found), str(job))
    if not setup.subjects[model].marks:
        return judged
    # A detector may see no more than that an image is not of 8 bits.
    rounded = attacked.pixels + (255 * (found - attacked.pixels)).trunc() / 255
    stored = judge(setup, model, dataclasses.replace(attacked, pixels=rounded), str(job))
    return judged.worse_of(torch.arange(len(judged.shares)), stored)
