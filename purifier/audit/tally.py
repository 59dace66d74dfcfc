"""Counting: what each figure of an audit gathers over the batches, and the worst case of them all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..target import Route, Spent
from ..threat import Threat
from .detection import Seen, detect
from .plan import Job
from .report import WHITE_BOX, Model, Row, WorstCase
from .statistics import Rate, rate


class Tally:
    """One figure in the making: how often each image was judged right."""

    def __init__(self, model: Model, job: Job | None = None, route: Route | None = None) -> None:
        self.model, self.job, self.route = model, job, route
        self.error: str | None = None
        self.seconds = 0.0
        self._spent = Spent()
        self._shares: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._judgements = 1

    @property
    def threat(self) -> Threat | None:
        """None for clean images."""
        return self.job.threat if self.job else None

    @property
    def shares(self) -> Tensor:
        """The share of judgements in which each image was right, (N,) float64."""
        return torch.cat(self._shares)

    @property
    def seen(self) -> Seen | None:
        """Shares and scores; None for the undefended classifier, which has no score."""
        return Seen(self.shares, torch.cat(self._scores)) if self._scores else None

    def add(self, right: Tensor, score: Tensor | None) -> None:
        """Take the judgements (J, n) of the next n images, and a guard's scores (n,)."""
        self._judgements = len(right)
        self._shares.append(right.double().mean(0).cpu())
        if score is not None:
            self._scores.append(score.float().cpu())

    def cost(self, spent: Spent, seconds: float) -> None:
        """Take what the crafting of the next images cost."""
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

    def row(self, clean: Tally, threshold: float | None) -> Row:
        """The finished figure; ``clean`` is the same model on clean images."""
        count = len(clean.shares)
        result, worst_of_n = (None, None) if self.error else self.rates(torch.minimum(clean.shares, self.shares))
        detection = None
        if clean.seen is not None and not self.error:
            detection = detect(clean.seen, None if self is clean else self.seen, threshold)
        return Row(
            model=self.model,
            attack=self.job.named.spec if self.job else "none",
            options=self.job.named.options if self.job else {},
            route=self.route,
            threat=self.threat,
            result=result,
            worst_of_n=worst_of_n,
            queries_per_image=self._spent.queries / count,
            gradients_per_image=self._spent.gradients / count,
            scores_per_image=self._spent.scores / count,
            seconds=round(self.seconds, 3),
            error=self.error,
            detection=detection,
        )

    def rates(self, shares: Tensor) -> tuple[Rate, Rate | None]:
        """The mean over judgements, and right in all of them if there were several."""
        always = int((shares == 1).sum())
        worst_of_n = rate(always, len(shares)) if self._judgements > 1 else None
        return rate(min(shares.sum().item(), len(shares)), len(shares)), worst_of_n


def rows_of(tallies: Sequence[Tally], threshold: float | None) -> list[Row]:
    """All figures, clean images first; ``threshold`` is the calibrated one, or None."""
    clean = _clean(tallies)
    return [tally.row(clean[tally.model], threshold) for tally in tallies]


def worst_cases(tallies: Sequence[Tally], strongest: Route) -> list[WorstCase]:
    """For each threat and model, over all routes run and white-box: right when clean and under every attack.

    ``strongest`` is the route that sees most of this purifier; without it nothing is called white-box.
    """
    clean = _clean(tallies)
    cases = []
    for threat in dict.fromkeys(tally.threat for tally in tallies if tally.threat is not None):
        for scope in ("all", "white-box"):
            for model, base in clean.items():
                members = [
                    tally
                    for tally in tallies
                    if tally.model == model and tally.threat == threat and (scope == "all" or tally.route in WHITE_BOX)
                ]
                needed = "exact" if model == "undefended" else strongest
                if not members or (scope == "white-box" and needed not in [tally.route for tally in members]):
                    continue
                shares = base.shares
                for tally in members:
                    shares = shares if tally.error else torch.minimum(shares, tally.shares)
                routes = [str(route) for route in dict.fromkeys(tally.route for tally in members)]
                complete = all(tally.error is None for tally in members)
                cases.append(WorstCase(model, threat, scope, routes, *base.rates(shares), complete))
    return cases


def _clean(tallies: Sequence[Tally]) -> dict[Model, Tally]:
    return {tally.model: tally for tally in tallies if tally.job is None}
