"""Runs the jobs of an audit: craft and judge, one batch at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..attacking.target import Spent, strongest_route
from ..attacking.threat import Threat
from ..data.images import ImageData
from ..data.pixels import check_pixels
from ..errors import AuditError
from ..foreign_code import Attempt, explained
from ..vocabulary import Route
from .counting import PendingRow
from .crafting import craft
from .facts import DataDigest
from .judging import CLEAN, Judged, judge
from .keeping import Keeper
from .plan import QUERY_NEEDS, Job
from .report import Model
from .setup import AuditSetup, Batch
from .watching import Progress, ProgressFailed, Watch

WorstSoFar = dict[Model, Judged]
"""For each model, the worst result so far of each image of a batch in a sequence of attacks."""


def run_jobs(
    setup: AuditSetup,
    data: ImageData,
    jobs: Sequence[Job],
    about: DataDigest,
    progress: Progress | None,
    keeper: Keeper,
) -> list[PendingRow]:
    """Run all jobs on all batches; ``about`` is told of each batch, ``keeper`` of what each attack found."""
    watch = Watch(progress, jobs, len(data), setup.batch_size, setup.eot)
    try:
        return _run(setup, data, jobs, about, watch, keeper)
    except ProgressFailed as failed:
        raise failed.error from None


def _run(
    setup: AuditSetup, data: ImageData, jobs: Sequence[Job], about: DataDigest, watch: Watch, keeper: Keeper
) -> list[PendingRow]:
    clean: dict[Model, PendingRow] = {model: PendingRow(model) for model in setup.subjects}
    alone = strongest_route(setup.classifier, setup.alone.purifier)
    plans = [(job, _rows_for(job, alone)) for job in jobs]
    for start in range(0, len(data), setup.batch_size):
        indices = range(start, min(start + setup.batch_size, len(data)))
        watch.batch(len(indices))
        batch = setup.batch(data, indices)
        check_pixels(batch.pixels, name=data.name)
        about.add(batch.pixels, batch.labels)
        on_clean: dict[Model, Judged] = {}
        for model, row in clean.items():
            failure = f"the {model} classifier fails on clean images of {data.name}"
            with row.timed(), explained(failure, AuditError, "fix it; nothing was attacked"):
                on_clean[model] = judge(setup, model, batch, CLEAN)
            row.add(on_clean[model], on_clean[model])
        watch.clean(on_clean[setup.model].shares)
        sequences: dict[tuple[str, Threat], WorstSoFar] = {}
        for number, (job, rows) in enumerate(plans):
            worst = None
            if job.sequence is not None:
                worst = sequences.setdefault((job.sequence, job.threat), dict(on_clean))
            at = _attackable(job, rows, batch, worst)
            watch.job(number, job, len(at))
            _attack(setup, job, rows, batch, at, on_clean, worst, watch, keeper)
    watch.end("looking for flags" if jobs else "done")
    return [*clean.values(), *(row for _, rows in plans for row in rows)]


def _attackable(job: Job, rows: Sequence[PendingRow], batch: Batch, worst: WorstSoFar | None) -> Tensor:
    """Positions in the batch of the images to attack, (n,): in a sequence only those that are still right."""
    if any(row.error for row in rows):
        return torch.zeros(0, dtype=torch.long)
    if worst is None:
        return torch.arange(len(batch.indices))
    # An oblivious gradient attack also gets images that only the guard still has right; for a query attack that
    # would cost more than it finds.
    judges = rows[:1] if job.named.attack.needs in QUERY_NEEDS else rows
    return torch.stack([worst[row.model].shares for row in judges]).amax(0).nonzero().squeeze(1)


def _attack(
    setup: AuditSetup,
    job: Job,
    rows: Sequence[PendingRow],
    batch: Batch,
    at: Tensor,
    on_clean: Mapping[Model, Judged],
    worst: WorstSoFar | None,
    watch: Watch,
    keeper: Keeper,
) -> None:
    """Attack the images at positions ``at`` (n,) of a batch; in a sequence update ``worst``."""
    if any(row.error for row in rows):
        return
    attacked, spent, began = batch.select(at), Spent(on_query=watch.on_query), time.perf_counter()
    found = attacked.pixels
    if len(at):
        with Attempt() as attempt:
            found = craft(setup, job, attacked, spent)
        if attempt.error is not None:  # the other attacks still run
            for row in rows:
                row.error = attempt.cause
            return
    crafting = time.perf_counter() - began
    keeper.found(rows[0], attacked, found)
    for row in rows:
        row.cost(attacked.indices, spent, crafting)
        with Attempt() as attempt, row.timed():
            judged = judge(setup, row.model, dataclasses.replace(attacked, pixels=found), str(job))
            if setup.subjects[row.model].marks:  # a detector may see no more than that an image is not of 8 bits
                rounded = attacked.pixels + (255 * (found - attacked.pixels)).trunc() / 255
                stored = judge(setup, row.model, dataclasses.replace(attacked, pixels=rounded), str(job))
                judged = judged.worse_of(torch.arange(len(at)), stored)
        if attempt.error is not None:  # a row that lacks a batch cannot be compared with the others
            for one in rows:
                one.error = one.error or f"judging failed: {attempt.cause}"
            return
        if row.model == setup.model:
            watch.judged(job.threat, at, judged.shares)
            keeper.judged(row, attacked, found, judged, on_clean[row.model].select(at))
        if worst is None:
            row.add(judged, judged)
        else:
            worst[row.model] = worst[row.model].worse_of(at, judged)
            row.add(worst[row.model], on_clean[row.model].replaced(at, judged))


def _rows_for(job: Job, alone: Route) -> list[PendingRow]:
    """The rows a job fills: one for the model it attacks, then one for the model its images are transferred to."""
    if job.route != "oblivious":
        return [PendingRow(job.model, job, job.route, alone)]
    # The undefended classifier has no purifier, so on it these images are the white-box attack.
    own: Route = alone if job.named.attack.needs == "gradient" else "none"
    return [PendingRow("undefended", job, own, alone), PendingRow("guarded", job, "oblivious")]
