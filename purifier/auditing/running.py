"""Running the jobs of an audit: craft and judge, a batch at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from ..attacking.target import Spent
from ..attacking.threat import Threat
from ..data.images import ImageData
from ..data.pixels import check_pixels
from ..foreign_code import Attempt, cause_of
from ..vocabulary import Route
from .counting import PendingRow
from .crafting import craft
from .judging import Judged, judge
from .plan import QUERY_NEEDS, Job
from .report import Model
from .setup import AuditSetup, Batch

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what comes next."""

Standing = dict[Model, Judged]
"""A batch as the attacks of a sequence have left it, for each model."""


def run_jobs(
    setup: AuditSetup,
    data: ImageData,
    jobs: Sequence[Job],
    transfers: bool,
    progress: Progress | None,
) -> list[PendingRow]:
    """Every figure, over all batches; ``transfers`` judges the oblivious images on the guard too."""
    clean: dict[Model, PendingRow] = {"undefended": PendingRow("undefended"), "guarded": PendingRow("guarded")}
    plans = [(job, _rows_for(job, transfers)) for job in jobs]
    starts = range(0, len(data), setup.batch_size)
    done, total = 0, len(starts) * (1 + len(jobs))
    for start in starts:
        indices = range(start, min(start + setup.batch_size, len(data)))
        pixels, labels = (part.to(setup.device) for part in data.batch(indices))
        check_pixels(pixels, name=data.name)
        batch = Batch(pixels, labels, indices)
        unharmed: Standing = {}
        for model, row in clean.items():
            with row.timed():
                unharmed[model] = judge(setup, model, batch, "none")
            row.add(unharmed[model], unharmed[model])
        sequences: dict[tuple[str, Threat], Standing] = {}
        done += 1
        for job, rows in plans:
            if progress is not None:
                progress(done, total, str(job))
            standing = None
            if job.sequence is not None:
                standing = sequences.setdefault((job.sequence, job.threat), dict(unharmed))
            _attack(setup, job, rows, batch, unharmed, standing)
            done += 1
    if progress is not None:
        progress(done, total, "done")
    return [*clean.values(), *(row for _, rows in plans for row in rows)]


def _attack(
    setup: AuditSetup, job: Job, rows: Sequence[PendingRow], batch: Batch, unharmed: Standing, standing: Standing | None
) -> None:
    """Attack the images of a batch, or those still ``standing`` in a sequence, which is brought up to date."""
    if any(row.error for row in rows):
        return
    at = torch.arange(len(batch.indices))
    if standing is not None:
        # Images made without knowing the guard go on until it is fooled too; by queries they are not worth it.
        judges = rows[:1] if job.named.attack.needs in QUERY_NEEDS else rows
        at = torch.stack([standing[row.model].shares for row in judges]).amax(0).nonzero().squeeze(1)
    tried, spent, began = batch.select(at), Spent(), time.perf_counter()
    found = tried.pixels
    if len(at):
        with Attempt((Exception, SystemExit)) as attempt:
            found = craft(setup, job, tried, spent)
        if attempt.error is not None:  # the other attacks go on
            for row in rows:
                row.error = cause_of(attempt.error)
            return
    crafting = time.perf_counter() - began
    for row in rows:
        row.cost(len(at), spent, crafting)
        with Attempt() as attempt, row.timed():
            judged = judge(setup, row.model, dataclasses.replace(tried, pixels=found), str(job))
        if attempt.error is not None:
            row.error = f"judging failed: {cause_of(attempt.error)}"
            continue
        if standing is None:
            row.add(judged, judged)
        else:
            standing[row.model] = standing[row.model].worse_of(at, judged)
            row.add(standing[row.model], unharmed[row.model].replaced(at, judged))


def _rows_for(job: Job, transfers: bool) -> list[PendingRow]:
    """The rows a job fills: that of the model it attacks, then those its images are tried on too."""
    if job.route != "oblivious":
        return [PendingRow("guarded", job, job.route)]
    # Nothing stands before the undefended classifier, so there these images are the white-box attack.
    own: Route = "exact" if job.named.attack.needs == "gradient" else "none"
    alone = PendingRow("undefended", job, own)
    return [alone, PendingRow("guarded", job, "oblivious")] if transfers else [alone]
