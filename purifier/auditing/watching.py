"""What ``progress`` is told while an audit runs: the share of the work done, estimated from what attacks ask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacking.threat import Threat
from ..foreign_code import Attempt, Interrupted
from .plan import QUERY_NEEDS, Job

Progress = Callable[[float, int, str], None]
"""Called with the steps done, which may be a fraction; the steps in total; and in words what is running."""

EVERY = 0.2
"""Smallest number of seconds between two calls, so that telling costs an attack nothing."""
GRADIENT_COST = 3.0
"""About how many queries take as long as one gradient."""
USUAL_STEPS = 50
"""How many steps a library's attack is taken to have if its options do not say; any other then has one."""


class ProgressFailed(Interrupted):
    """``progress`` raised ``error``, perhaps in the middle of an attack, which must not be blamed for it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@dataclass
class _Work:
    """One attack over the batches: how much it is expected to ask, and what it has asked."""

    guess: float
    """How many questions it is expected to ask for each image, before it has run."""
    cost: float
    """What a question costs, in queries."""
    asked: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def for_each(self) -> float:
        """How many questions it asks for each image, from earlier batches if there are any."""
        return self.asked / self.images if self.asked else self.guess


class Watch:
    """Tells ``progress`` how far an audit is: at each step of it, and at each step of an attack.

    Every batch is the same share of the audit for each of its images. Within a batch a job counts as much as it is
    expected to take: in the first batch what its options say, later the seconds that it took before. Within a job the
    share is that of the questions it is expected to ask, and never reaches 1 before it ends.
    """

    def __init__(self, progress: Progress | None, jobs: Sequence[Job], images: int, batch_size: int, eot: int) -> None:
        self._progress = progress
        self._images, self._batch_size = images, batch_size
        self.total = math.ceil(images / batch_size) * (1 + len(jobs))
        clean = _Work(guess=1, cost=1)
        self._work = [clean, *(_Work(questions(job, eot), _cost(job)) for job in jobs)]
        self._weights = [1.0] * len(self._work)
        self._at, self._asked, self._got, self._now = 0, 0, 0, 0
        self._seen, self._size = 0, 0
        self._done, self._what, self._so_far = 0.0, "", ""
        self._began = self._told = time.monotonic()
        self._clean, self._worst, self._before = torch.zeros(0), dict[Threat, Tensor](), dict[Threat, float]()
        self._right = 0.0

    @property
    def on_query(self) -> Callable[[int], None] | None:
        """Takes the number of images of a query; None if there is no ``progress`` to call."""
        return None if self._progress is None else self._query

    def batch(self, size: int) -> None:
        """A batch of ``size`` images begins, with its clean images."""
        if self._size:
            self._leave()
        self._seen += self._size
        # In later batches a job counts as much as the time that it took before.
        self._weights = [work.seconds if self._seen else work.guess * work.cost for work in self._work]
        self._right += self._clean.sum().item()
        for threat, shares in self._worst.items():
            self._before[threat] = self._before.get(threat, 0.0) + shares.sum().item()
        self._size, self._clean, self._worst = size, torch.zeros(0), {}
        self._enter(0, size, "clean images", "")

    def clean(self, shares: Tensor) -> None:
        """The audited model's results on the batch's clean images, (n,)."""
        self._clean = shares

    def job(self, number: int, job: Job, images: int) -> None:
        """A job begins on ``images`` images of the batch; jobs are numbered from 0."""
        self._leave()
        self._worst.setdefault(job.threat, self._clean.clone())
        count = self._seen + self._size
        right = (self._right + self._clean.sum().item()) / count
        worst = (self._before.get(job.threat, 0.0) + self._worst[job.threat].sum().item()) / count
        self._enter(number + 1, images, str(job), f", right so far: {right:.1%} clean, {worst:.1%} worst case")

    def judged(self, threat: Threat, at: Tensor, shares: Tensor) -> None:
        """The audited model's results on the attacked images at positions ``at`` (n,) of the batch, (n,)."""
        worst = self._worst[threat]
        worst[at] = torch.minimum(worst[at], shares)

    def took(self, asked: int, seconds: float) -> None:
        """The present job is not run, because a journal has what it came to when it ran."""
        self._asked += asked
        self._began -= seconds

    def end(self, what: str) -> None:
        """All jobs are over; ``what`` comes next."""
        self._leave()
        self._done, self._what, self._so_far = float(self.total), what, ""
        self._tell()

    def _enter(self, at: int, images: int, what: str, so_far: str) -> None:
        self._at, self._asked, self._got, self._now = at, 0, images, images
        self._what, self._so_far, self._began = what, so_far, time.monotonic()
        self._done = max(self._done, self._total(0.0))
        self._tell()

    def _leave(self) -> None:
        work = self._work[self._at]
        work.asked += self._asked
        work.images += self._got
        work.seconds += time.monotonic() - self._began

    def _query(self, count: int) -> None:
        self._asked += count
        self._now = count
        if time.monotonic() - self._told < EVERY:
            return
        expected = self._work[self._at].for_each * max(1, self._got)
        self._done = max(self._done, self._total(share_done(self._asked / expected)))
        self._tell()

    def _total(self, within: float) -> float:
        """The steps done when the share ``within`` of the present job is."""
        before, all_jobs = sum(self._weights[: self._at]), sum(self._weights)
        batch = (before + within * self._weights[self._at]) / (all_jobs or 1.0)
        return self.total * (self._seen + self._size * batch) / self._images

    def _tell(self) -> None:
        if self._progress is None:
            return
        asked = f", {min(self._now, self._got)} of {self._size} images" if self._so_far else ""
        with Attempt() as attempt:
            self._progress(self._done, self.total, self._what + asked + self._so_far)
        if attempt.error is not None:
            raise ProgressFailed(attempt.error)
        self._told = time.monotonic()


def share_done(ratio: float) -> float:
    """The share of a job that is done when it has asked ``ratio`` times what was expected: grows, and stays below 1."""
    return 0.9 * ratio if ratio <= 1 else 1 - 0.1 / ratio


def questions(job: Job, eot: int) -> float:
    """About how many times an attack asks for each image, from the options that say how much work it does."""
    options = job.named.options

    def option(*names: str, default: float = 1) -> float:
        found = (options.get(name) for name in names)
        return next((float(value) for value in found if isinstance(value, int | float) and value > 0), default)

    usual = USUAL_STEPS if hasattr(job.named.attack, "options") else 1
    steps = option("queries", "steps", "draws", default=usual)
    often = option("restarts") * option("finalists", "targets") * option("searches") * option("samples")
    return steps * often * job.draws(eot)


def _cost(job: Job) -> float:
    return 1.0 if job.named.attack.needs in QUERY_NEEDS else GRADIENT_COST
