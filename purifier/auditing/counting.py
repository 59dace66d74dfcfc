"""Counting: collects the results of each attack over the batches, and the worst case over all attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacking.target import Spent
from ..attacking.threat import Threat
from ..vocabulary import Route
from .detection import Seen, detect
from .judging import CLEAN, Judged
from .plan import Job
from .report import WHITE_BOX, Model, Row, WorstCase
from .statistics import Rate, rate


class PendingRow:
    """A row of the report in progress: how often each image was judged right."""

    def __init__(
        self, model: Model, job: Job | None = None, route: Route | None = None, alone: Route = "exact"
    ) -> None:
        self.model, self.job, self._route, self._alone = model, job, route, alone
        self.error: str | None = None
        self.attacked = 0
        self.seconds = 0.0
        self._spent = Spent()
        self._parts: list[Judged] = []
        self._own: list[Judged] = []
        self._given: list[int] = []

    @property
    def threat(self) -> Threat | None:
        """None for clean images."""
        return self.job.threat if self.job else None

    @property
    def differentiates(self) -> bool:
        """Whether the attack asked for gradients, even if only of the classifier."""
        return self._spent.gradients > 0

    @property
    def evades(self) -> bool:
        """Whether the attack asked for the purifier's scores, so that it could evade a detector."""
        return self._spent.scores > 0

    def takes_steps(self, eot: int) -> bool:
        """Whether the attack differentiated at more than one point an image and draw, or left no image right."""
        draws = self.job.draws(eot) if self.job else eot
        return self._spent.passes > self.attacked * draws or not self.shares.any()

    def searches(self, least: int) -> bool:
        """Whether the attack asked at least ``least`` times about each image that it left right."""
        return self._spent.queries >= least * self.shares.sum().item()

    @property
    def route(self) -> Route | None:
        """None for clean images. On the undefended classifier every attack with gradients follows one route."""
        return self._alone if self.model == "undefended" and self.differentiates else self._route

    @property
    def shares(self) -> Tensor:
        """The share of judgements in which each image was right, (N,) float64; in a sequence, the worst so far."""
        return torch.cat([part.shares for part in self._parts])

    @property
    def own_shares(self) -> Tensor:
        """The same under this attack alone, (N,); in a sequence, images it did not attack keep their clean value."""
        return torch.cat([part.shares for part in self._own])

    @property
    def right(self) -> Tensor:
        """The share of judgements in which each image is right and not rejected, (N,) float64."""
        return torch.cat([part.right for part in self._parts])

    @property
    def rejected(self) -> Tensor | None:
        """The share in which each image is rejected, (N,) float64; None if the model marks no images as rejected."""
        found = [part.rejected for part in self._parts if part.rejected is not None]
        return torch.cat(found) if found else None

    def kept(self, name: str) -> Tensor | None:
        """A field of ``Judged`` under this attack alone, (N,); None if the model has none."""
        found = [part for part in (getattr(one, name) for one in self._own) if part is not None]
        return torch.cat(found) if found else None

    def given(self, span: range) -> Tensor:
        """Which of the images at these positions of the data the attack was given, bool (N,)."""
        places = torch.tensor(self._given, dtype=torch.long) - span.start
        return torch.zeros(len(span), dtype=torch.bool).index_fill(0, places, True)

    def __str__(self) -> str:
        return f"{self.model}: {CLEAN}" if self.job is None else f"{self.model}: {self.job}"

    @property
    def seen(self) -> Seen | None:
        """What this attack alone did, with scores; None for a model that has no score."""
        scores = [part.scores for part in self._own if part.scores is not None]
        return Seen(torch.cat([part.plain for part in self._own]), torch.cat(scores)) if scores else None

    def add(self, judged: Judged, own: Judged) -> None:
        """Add the judge's results for the next batch: the worst so far, and those of this attack alone.

        In a sequence ``own`` holds the clean result of images that this attack did not get.
        """
        self._parts.append(judged)
        self._own.append(own)

    def cost(self, attacked: Sequence[int], spent: Spent, seconds: float) -> None:
        """Add the cost of the next batch, of the images at these positions of the data."""
        self.attacked += len(attacked)
        self._given += attacked
        self._spent.queries += spent.queries
        self._spent.gradients += spent.gradients
        self._spent.passes += spent.passes
        self._spent.scores += spent.scores
        self.seconds += seconds

    def finished(self, clean: PendingRow, threshold: float | None, judgements: int, eot: int) -> Row:
        """The finished row; ``clean`` is the row of the same model on clean images."""
        figures = Figures(None, None, None)
        detection = right = rejected = None
        if not self.error:
            figures = figures_of(torch.minimum(clean.shares, self.shares), _judgements_of(self.model, judgements))
            if self.rejected is not None:
                right, rejected = _rate_of(torch.minimum(clean.right, self.right)), _rate_of(self.rejected)
            if clean.seen is not None:
                detection = detect(clean.seen, None if self is clean else self.seen, threshold)
        attacked = max(1, self.attacked)
        return Row(
            model=self.model,
            attack=self.job.named.spec if self.job else CLEAN,
            options=self.job.named.options if self.job else {},
            needs=self.job.named.attack.needs if self.job else None,
            route=self.route,
            threat=self.threat,
            eot=self.job.draws(eot) if self.job else eot,
            sequence=self.job.sequence if self.job else None,
            attacked=self.attacked,
            **vars(figures),
            right=right,
            rejected=rejected,
            queries_per_image=self._spent.queries / attacked,
            gradients_per_image=self._spent.gradients / attacked,
            scores_per_image=self._spent.scores / attacked,
            seconds=round(self.seconds, 3),
            error=self.error,
            detection=detection,
        )


@dataclass(frozen=True)
class Figures:
    """The rates over several judgements: their mean, right in all of them, right in most of them."""

    result: Rate | None
    worst_of_n: Rate | None
    majority: Rate | None


def figures_of(shares: Tensor, judgements: int) -> Figures:
    """The rates of shares (N,); the last two are None if there is only one judgement."""
    count, result = len(shares), _rate_of(shares)
    if judgements == 1:
        return Figures(result, None, None)
    return Figures(result, rate(int((shares == 1).sum()), count), rate(int((shares > 0.5).sum()), count))


def _rate_of(shares: Tensor) -> Rate:
    return rate(min(shares.sum().item(), len(shares)), len(shares))


def finished_rows(rows: Sequence[PendingRow], threshold: float | None, judgements: int, eot: int) -> list[Row]:
    """All rows, finished, in the same order; ``threshold`` is that of a calibrated purifier."""
    clean = _clean(rows)
    return [row.finished(clean[row.model], threshold, judgements, eot) for row in rows]


def worst_cases(
    rows: Sequence[PendingRow], strongest: Mapping[Model, Route], judgements: int, eot: int
) -> list[WorstCase]:
    """The worst case for each threat and model, over all routes run and over the white-box routes.

    An image counts as right if it is right when clean and under every attack. ``strongest`` is the route that sees
    most of each model; without a row along it there is no white-box case.
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
                if not members or (scope == "white-box" and strongest[model] not in [row.route for row in members]):
                    continue
                shares = base.shares
                for row in members:
                    shares = shares if row.error else torch.minimum(shares, row.shares)
                routes = [str(route) for route in dict.fromkeys(row.route for row in members)]
                complete = all(row.error is None for row in members)
                multi_step = any(row.takes_steps(eot) for row in white_box_rows(members))
                figures = figures_of(shares, _judgements_of(model, judgements))
                cases.append(
                    WorstCase(model, threat, scope, routes, complete=complete, multi_step=multi_step, **vars(figures))
                )
    return cases


def white_box_rows(rows: Sequence[PendingRow]) -> list[PendingRow]:
    """The rows of white-box attacks that finished."""
    return [row for row in rows if row.route in WHITE_BOX and not row.error]


def _clean(rows: Sequence[PendingRow]) -> dict[Model, PendingRow]:
    return {row.model: row for row in rows if row.job is None}


def _judgements_of(model: Model, judgements: int) -> int:
    """How often a model is judged: once for the classifier alone, which has no noise."""
    return judgements if model == "guarded" else 1
