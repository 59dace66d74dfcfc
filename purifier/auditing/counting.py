"""Counting: what each figure of an audit gathers over the batches, and the worst case of them all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacking.target import Spent
from ..attacking.threat import Threat
from ..vocabulary import Route
from .detection import Seen, detect
from .judging import Judged
from .plan import Job
from .report import WHITE_BOX, Model, Row, WorstCase
from .statistics import Rate, rate


class PendingRow:
    """One figure in the making: how often each image was judged right."""

    def __init__(self, model: Model, job: Job | None = None, route: Route | None = None) -> None:
        self.model, self.job, self._route = model, job, route
        self.error: str | None = None
        self.attacked = 0
        self.seconds = 0.0
        self._spent = Spent()
        self._parts: list[Judged] = []
        self._own: list[Judged] = []

    @property
    def threat(self) -> Threat | None:
        """None for clean images."""
        return self.job.threat if self.job else None

    @property
    def differentiates(self) -> bool:
        """Whether gradients were asked for, be it of the classifier alone."""
        return self._spent.gradients > 0

    @property
    def route(self) -> Route | None:
        """None for clean images. To whom the classifier's gradients are open, the undefended one hides nothing."""
        return "exact" if self.model == "undefended" and self.differentiates else self._route

    @property
    def shares(self) -> Tensor:
        """The share of judgements in which each image was right, (N,) float64; in a sequence so far."""
        return torch.cat([part.shares for part in self._parts])

    @property
    def own_shares(self) -> Tensor:
        """The same under this attack itself, (N,): in a sequence, images it did not get are as when clean."""
        return torch.cat([part.shares for part in self._own])

    @property
    def seen(self) -> Seen | None:
        """Shares and scores of this attack itself; None for the undefended classifier, which has no score."""
        scores = [part.scores for part in self._own if part.scores is not None]
        return Seen(self.own_shares, torch.cat(scores)) if scores else None

    def add(self, judged: Judged, own: Judged) -> None:
        """Take what the judge said of the next images: so far, and of those this attack had alone.

        In a sequence an image that this attack did not get is in ``own`` as it was when clean.
        """
        self._parts.append(judged)
        self._own.append(own)

    def cost(self, attacked: int, spent: Spent, seconds: float) -> None:
        """Take what the crafting of the next images cost."""
        self.attacked += attacked
        self._spent.queries += spent.queries
        self._spent.gradients += spent.gradients
        self._spent.scores += spent.scores
        self.seconds += seconds

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time spent inside."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def finished(self, clean: PendingRow, threshold: float | None, judgements: int, eot: int) -> Row:
        """The finished figure; ``clean`` is the same model on clean images."""
        figures = Figures(None, None, None)
        detection = None
        if not self.error:
            figures = figures_of(torch.minimum(clean.shares, self.shares), _times(self.model, judgements))
            if clean.seen is not None:
                detection = detect(clean.seen, None if self is clean else self.seen, threshold)
        each = max(1, self.attacked)
        return Row(
            model=self.model,
            attack=self.job.named.spec if self.job else "none",
            options=self.job.named.options if self.job else {},
            route=self.route,
            threat=self.threat,
            eot=self.job.draws(eot) if self.job else eot,
            sequence=self.job.sequence if self.job else None,
            attacked=self.attacked,
            **vars(figures),
            queries_per_image=self._spent.queries / each,
            gradients_per_image=self._spent.gradients / each,
            scores_per_image=self._spent.scores / each,
            seconds=round(self.seconds, 3),
            error=self.error,
            detection=detection,
        )


@dataclass(frozen=True)
class Figures:
    """What judgements come to: their mean, right in all of them, right in most of them."""

    result: Rate | None
    worst_of_n: Rate | None
    majority: Rate | None


def figures_of(shares: Tensor, judgements: int) -> Figures:
    """The figures of shares (N,); the last two are None where one judgement tells all."""
    count = len(shares)
    result = rate(min(shares.sum().item(), count), count)
    if judgements == 1:
        return Figures(result, None, None)
    return Figures(result, rate(int((shares == 1).sum()), count), rate(int((shares > 0.5).sum()), count))


def finished_rows(rows: Sequence[PendingRow], threshold: float | None, judgements: int, eot: int) -> list[Row]:
    """All figures, clean images first; ``threshold`` is the calibrated one, or None."""
    clean = _clean(rows)
    return [row.finished(clean[row.model], threshold, judgements, eot) for row in rows]


def worst_cases(rows: Sequence[PendingRow], strongest: Route, judgements: int) -> list[WorstCase]:
    """For each threat and model, over all routes run and white-box: right when clean and under every attack.

    ``strongest`` is the route that sees most of this purifier; without it nothing is called white-box.
    """
    clean = _clean(rows)
    cases = []
    for threat in dict.fromkeys(row.threat for row in rows if row.threat is not None):
        for scope in ("all", "white-box"):
            for model, base in clean.items():
                members = [
                    row
                    for row in rows
                    if row.model == model and row.threat == threat and (scope == "all" or row.route in WHITE_BOX)
                ]
                needed = "exact" if model == "undefended" else strongest
                if not members or (scope == "white-box" and needed not in [row.route for row in members]):
                    continue
                shares = base.shares
                for row in members:
                    shares = shares if row.error else torch.minimum(shares, row.shares)
                routes = [str(route) for route in dict.fromkeys(row.route for row in members)]
                complete = all(row.error is None for row in members)
                figures = figures_of(shares, _times(model, judgements))
                cases.append(WorstCase(model, threat, scope, routes, complete=complete, **vars(figures)))
    return cases


def _clean(rows: Sequence[PendingRow]) -> dict[Model, PendingRow]:
    return {row.model: row for row in rows if row.job is None}


def _times(model: Model, judgements: int) -> int:
    """How often a model is judged: the classifier alone has no noise."""
    return judgements if model == "guarded" else 1
