"""What an audit would do and about how long it would take, from a short measurement on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ..attacking.target import Target
from ..data.given import Data
from ..seeding import SampleGenerator
from ..vocabulary import Route
from .plan import QUERY_NEEDS, Job
from .preparing import Audited, Prepared, Request, prepare
from .report import Model
from .setup import AuditSetup
from .watching import questions

MEASURED = 32
"""The number of images that one gradient and one answer are timed on, or the batch size if that is smaller."""
PROBE_GRADIENTS = 60
"""About how many gradients the self-checks compute for each of their images, threat and draw."""


@dataclass(frozen=True)
class PlannedJob:
    """One attack of a plan."""

    job: Job
    gradients: float
    """About how many gradients it computes for each image, over all draws; 0 for query attacks."""
    queries: float
    """About how many images it shows to the model for each image; 0 for gradient attacks."""
    seconds: float
    """For all images; in a sequence it is less, because only those that are still right are attacked."""


@dataclass(frozen=True)
class Plan:
    """What an audit would do."""

    images: int
    batch_size: int
    jobs: Sequence[PlannedJob]
    left_out: Sequence[str]
    self_checks: float
    """Seconds of the self-checks."""

    @property
    def seconds(self) -> float:
        """Of the whole audit, at most: sequences attack fewer and fewer images."""
        return sum(one.seconds for one in self.jobs) + self.self_checks


def estimate(guard: Audited, data: Data, request: Request) -> Plan:
    """The plan of the audit that ``request`` asks for; nothing is attacked.

    Raises
    ------
    PurifierError
        The audit cannot run as requested, as for ``audit``.
    """
    with ExitStack() as stack:
        ready = prepare(stack, guard, data, request)
        clock = _Clock(ready)
        planned = [_planned(job, ready, clock) for job in ready.jobs]
        checks = 0.0
        if ready.jobs and ready.setup.classifier.differentiable:
            route = ready.parts.routes[ready.setup.model]
            gradients = PROBE_GRADIENTS * min(request.probes, len(ready.data)) * len(ready.threats) * ready.setup.eot
            checks = gradients * clock.gradient(ready.setup.model, route)
        return Plan(len(ready.data), ready.setup.batch_size, planned, ready.left_out, checks)


def _planned(job: Job, ready: Prepared, clock: _Clock) -> PlannedJob:
    asked, judged = questions(job, ready.setup.eot), ready.setup.judgements * clock.answer("guarded")
    query = job.named.attack.needs in QUERY_NEEDS
    model: Model = "undefended" if job.route == "oblivious" else job.model
    each = clock.answer(model) if query else clock.gradient(model, job.route)
    seconds = len(ready.data) * (asked * each + judged)
    return PlannedJob(job, 0.0 if query else asked, asked if query else 0.0, seconds)


class _Clock:
    """Seconds of one gradient and one answer for one image, each measured when it is first asked for."""

    def __init__(self, ready: Prepared) -> None:
        self._setup, count = ready.setup, min(MEASURED, ready.setup.batch_size, len(ready.data))
        self._batch = ready.setup.batch(ready.data, range(count))
        self._known: dict[tuple[Model, Route], float] = {}

    def answer(self, model: Model) -> float:
        """Of one answer."""
        return self._of(model, "none", lambda target: target(self._batch.pixels))

    def gradient(self, model: Model, route: Route) -> float:
        """Of one gradient through one draw."""
        return self._of(
            model, route, lambda target: target.gradient(self._batch.pixels, lambda logits: logits.logsumexp(1))
        )

    def _of(self, model: Model, route: Route, ask: Callable[[Target], object]) -> float:
        if (model, route) not in self._known:
            setup = self._setup if model == self._setup.model else self._setup.alone
            with torch.set_grad_enabled(route != "none"):
                ask(_target(setup, route, self._batch.indices))  # the first call also allocates and compiles
                _wait(setup)
                began = time.perf_counter()
                ask(_target(setup, route, self._batch.indices))
                _wait(setup)
                self._known[model, route] = (time.perf_counter() - began) / len(self._batch.indices)
        return self._known[model, route]


def _target(setup: AuditSetup, route: Route, indices: Sequence[int]) -> Target:
    return Target(setup.classifier, setup.purifier, route, SampleGenerator(setup.seed, indices))


def _wait(setup: AuditSetup) -> None:
    """Wait until a GPU has done what it was asked."""
    if setup.device.type == "cuda":
        torch.cuda.synchronize(setup.device)
