"""Adds up outcomes batch by batch, whether they have just been found or are read from a journal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attacking.threat import Threat
from ..vocabulary import Route
from .counting import PendingRow
from .identity import Identity
from .judging import Judged
from .keeping import Keeper
from .outcome import CleanOutcome, Outcome
from .plan import QUERY_NEEDS, Job
from .report import Model

WorstSoFar = dict[Model, Judged]
"""For each model, the worst result so far of each image of a batch in a sequence of attacks."""


class Tally:
    """The rows of an audit in progress. For each batch: ``begin``, then ``add`` for each job in its order."""

    def __init__(self, about: Identity) -> None:
        alone = about.routes["undefended"]
        self.about, self.keeper = about, Keeper(about.keeps_adversarial)
        self.jobs = list(about.jobs)
        self._clean = {model: PendingRow(model) for model in about.models}
        self._of_job = [_rows_for(job, alone) for job in self.jobs]
        self._labels: list[Tensor] = []
        self._proven: dict[str, list[Tensor]] = {}
        self._on_clean: WorstSoFar = {}
        self._sequences: dict[tuple[str, Threat], WorstSoFar] = {}

    @property
    def rows(self) -> list[PendingRow]:
        """Those of clean images, then those of each job."""
        return [*self._clean.values(), *(row for rows in self._of_job for row in rows)]

    @property
    def begun(self) -> bool:
        """Whether there was a batch."""
        return bool(self._labels)

    @property
    def labels(self) -> Tensor:
        """The labels of all images so far, (N,)."""
        return torch.cat(self._labels)

    @property
    def proven(self) -> dict[str, Tensor]:
        """For each threat with proofs, by its ``key_of``, the images whose answer provably stays, bool (N,)."""
        return {threat: torch.cat(parts) for threat, parts in self._proven.items()}

    def begin(self, clean: CleanOutcome) -> None:
        """Begin a batch with what its clean images came to."""
        self._labels.append(clean.labels.cpu())
        for threat, held in clean.proven.items():
            self._proven.setdefault(threat, []).append(held.cpu())
        self._on_clean, self._sequences = dict(clean.judged), {}
        self.keeper.begin()
        for model, row in self._clean.items():
            row.seconds += clean.seconds[model]
            row.add(clean.judged[model], clean.judged[model])

    def failure(self, number: int) -> str | None:
        """Why the job has failed, so that it does not run again; None if it has not."""
        return self._of_job[number][0].error

    def attackable(self, number: int) -> Tensor:
        """Positions in the batch of the images that a job attacks, (n,): in a sequence those that are still right."""
        job, rows = self.jobs[number], self._of_job[number]
        worst = self._worst(job)
        if worst is None:
            return torch.arange(len(self._labels[-1]))
        # An oblivious gradient attack also gets images that only the guard still has right; for a query attack that
        # would cost more than it finds.
        judges = rows[:1] if job.named.attack.needs in QUERY_NEEDS else rows
        return torch.stack([worst[row.model].shares for row in judges]).amax(0).nonzero().squeeze(1)

    def models(self, number: int) -> list[Model]:
        """The models that a job's images are tried on, in the order of its rows."""
        return [row.model for row in self._of_job[number]]

    def add(self, number: int, outcome: Outcome) -> Sequence[int]:
        """Count what a job came to on the batch; return the images, of those attacked, whose pixels must be kept."""
        rows, worst = self._of_job[number], self._worst(self.jobs[number])
        if outcome.error is not None:  # a row that lacks a batch cannot be compared with the others
            for row in rows:
                row.error = row.error or outcome.error
            return []
        if rows[0].error is not None:  # it failed in another shard; here later attacks got what it left right
            for row, judged in zip(rows, outcome.judged, strict=True):
                if worst is not None:
                    worst[row.model] = worst[row.model].worse_of(outcome.at, judged)
            return []
        kept: Sequence[int] = self.keeper.found(rows[0], outcome)
        for row, judged, seconds in zip(rows, outcome.judged, outcome.judging, strict=True):
            row.cost(outcome.indices, outcome.spent, outcome.crafting + seconds)
            if row.model == self.about.model:
                examples = self.keeper.judged(row, outcome, judged, self._on_clean[row.model].select(outcome.at))
                kept = kept or examples
            if worst is None:
                row.add(judged, judged)
            else:
                worst[row.model] = worst[row.model].worse_of(outcome.at, judged)
                row.add(worst[row.model], self._on_clean[row.model].replaced(outcome.at, judged))
        return kept

    def _worst(self, job: Job) -> WorstSoFar | None:
        if job.sequence is None:
            return None
        return self._sequences.setdefault((job.sequence, job.threat), dict(self._on_clean))


def _rows_for(job: Job, alone: Route) -> list[PendingRow]:
    """The rows a job fills: one for the model it attacks, then one for the model its images are transferred to."""
    if job.route != "oblivious":
        return [PendingRow(job.model, job, job.route, alone)]
    # The undefended classifier has no purifier, so on it these images are the white-box attack.
    own: Route = alone if job.named.attack.needs == "gradient" else "none"
    return [PendingRow("undefended", job, own, alone), PendingRow("guarded", job, "oblivious")]
