"""Runs the jobs of an audit: craft and judge, one batch at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ..attacking.target import Spent
from ..attacking.threat import Threat
from ..data.images import ImageData
from ..data.pixels import check_pixels
from ..foreign_code import Attempt
from ..vocabulary import Route
from .counting import PendingRow
from .crafting import craft
from .facts import DataDigest
from .judging import CLEAN, Judged, judge
from .plan import QUERY_NEEDS, Job
from .report import Model
from .setup import AuditSetup, Batch

Progress = Callable[[int, int, str], None]
"""Called with the steps done, the steps in total, and the next step."""

WorstSoFar = dict[Model, Judged]
"""For each model, the worst result so far of each image of a batch in a sequence of attacks."""


def run_jobs(
    setup: AuditSetup,
    data: ImageData,
    jobs: Sequence[Job],
    about: DataDigest,
    progress: Progress | None,
) -> list[PendingRow]:
    """Run all jobs on all batches; ``about`` is told of each batch."""
    clean: dict[Model, PendingRow] = {model: PendingRow(model) for model in setup.subjects}
    plans = [(job, _rows_for(job)) for job in jobs]
    starts = range(0, len(data), setup.batch_size)
    done, total = 0, len(starts) * (1 + len(jobs))
    for start in starts:
        indices = range(start, min(start + setup.batch_size, len(data)))
        batch = setup.batch(data, indices)
        check_pixels(batch.pixels, name=data.name)
        about.add(batch.pixels, batch.labels)
        on_clean: dict[Model, Judged] = {}
        for model, row in clean.items():
            with row.timed():
                on_clean[model] = judge(setup, model, batch, CLEAN)
            row.add(on_clean[model], on_clean[model])
        sequences: dict[tuple[str, Threat], WorstSoFar] = {}
        done += 1
        for job, rows in plans:
            if progress is not None:
                progress(done, total, str(job))
            worst = None
            if job.sequence is not None:
                worst = sequences.setdefault((job.sequence, job.threat), dict(on_clean))
            _attack(setup, job, rows, batch, on_clean, worst)
            done += 1
    if progress is not None:
        progress(done, total, "done")
    return [*clean.values(), *(row for _, rows in plans for row in rows)]


def _attack(
    setup: AuditSetup,
    job: Job,
    rows: Sequence[PendingRow],
    batch: Batch,
    on_clean: Mapping[Model, Judged],
    worst: WorstSoFar | None,
) -> None:
    """Attack the images of a batch; in a sequence only those that are still right, and update ``worst``."""
    if any(row.error for row in rows):
        return
    at = torch.arange(len(batch.indices))
    if worst is not None:
        # An oblivious gradient attack also gets images that only the guard still has right; for a query attack that
        # would cost more than it finds.
        judges = rows[:1] if job.named.attack.needs in QUERY_NEEDS else rows
        at = torch.stack([worst[row.model].shares for row in judges]).amax(0).nonzero().squeeze(1)
    attacked, spent, began = batch.select(at), Spent(), time.perf_counter()
    found = attacked.pixels
    if len(at):
        with Attempt((Exception, SystemExit)) as attempt:
            found = craft(setup, job, attacked, spent)
        if attempt.error is not None:  # the other attacks still run
            for row in rows:
                row.error = attempt.cause
            return
    crafting = time.perf_counter() - began
    for row in rows:
        row.cost(len(at), spent, crafting)
        with Attempt() as attempt, row.timed():
            judged = judge(setup, row.model, dataclasses.replace(attacked, pixels=found), str(job))
        if attempt.error is not None:
            row.error = f"judging failed: {attempt.cause}"
            continue
        if worst is None:
            row.add(judged, judged)
        else:
            worst[row.model] = worst[row.model].worse_of(at, judged)
            row.add(worst[row.model], on_clean[row.model].replaced(at, judged))


def _rows_for(job: Job) -> list[PendingRow]:
    """The rows a job fills: one for the model it attacks, then one for the model its images are transferred to."""
    if job.route != "oblivious":
        return [PendingRow(job.model, job, job.route)]
    # The undefended classifier has no purifier, so on it these images are the white-box attack.
    own: Route = "exact" if job.named.attack.needs == "gradient" else "none"
    return [PendingRow("undefended", job, own), PendingRow("guarded", job, "oblivious")]
