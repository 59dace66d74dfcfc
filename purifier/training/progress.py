"""What training reports while it runs, how often, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from .check import checks_after

Phase: TypeAlias = Literal["labelling", "starting", "training", "checking"]
REPORT_STEPS = 20
"""Most steps between two readings of the loss: each one makes a GPU wait."""
REPORT_SECONDS = 5.0
"""About how long it takes from one reading to the next, where steps are slow."""


@dataclass(frozen=True)
class Progress:
    """The progress of training, passed to ``progress`` after the first step and then every few steps or seconds.

    It is also passed while the classifier labels images that have no labels, before the first step, and while an
    epoch's result is checked (``phase``).
    """

    epoch: int
    epochs: int
    images: int
    """Images seen since the start of epoch 1; equal to ``total`` at the end."""
    total: int
    loss: float
    """The last step's loss."""
    images_per_second: float
    """Images trained on per second in this epoch, since the run was started or resumed."""
    seconds_left: float = 0.0
    """An estimate, for training and checks."""
    phase: Phase = "training"
    checked: int = 0
    """Images checked or labelled so far, of ``to_check``; 0 while training."""
    to_check: int = 0
    warning: str = ""
    """What training does not stop for, but should be known."""


def labelling(progress: Callable[[Progress], None] | None, epochs: int, images: int) -> Callable[[int], None] | None:
    """A function that reports how many of the images the classifier has labelled; None without ``progress``."""
    if progress is None:
        return None
    start = Progress(1, epochs, 0, epochs * images, 0.0, 0.0, phase="labelling", to_check=images)
    return lambda labelled: progress(replace(start, checked=labelled))


class Reporter:
    """Measures training, and calls ``progress``.

    Parameters
    ----------
    progress
        The caller's function; None to measure only.
    epochs, images
        How many epochs there are, and how many images each has.
    """

    def __init__(self, progress: Callable[[Progress], None] | None, epochs: int, images: int) -> None:
        self.progress, self.epochs, self.images = progress, epochs, images
        self.steps = 1
        """Steps from the last reading of the loss to the next."""
        self._epoch, self._seen, self._loss = 1, 0, 0.0
        self._trained, self._seconds = 0, 0.0
        self._in_epoch, self._epoch_seconds = 0, 0.0
        self._check_seconds = 0.0
        self._last = time.perf_counter()
        self._has_started = False

    def start_epoch(self, epoch: int, seen: int) -> None:
        """An epoch begins, or goes on after ``seen`` images."""
        self._epoch, self._seen = epoch, seen
        self._in_epoch, self._epoch_seconds = 0, 0.0
        if not self._has_started:
            self._has_started = True
            self._report(phase="starting")
        self.resume_clock()

    def resume_clock(self) -> None:
        """Leave out of the measurement what was done since the last ``lap``."""
        self._last = time.perf_counter()

    def lap(self, images: int, steps: int) -> float:
        """So many images were trained on since the last call: the seconds that it took."""
        took = time.perf_counter() - self._last
        self._seen += images
        self._in_epoch, self._epoch_seconds = self._in_epoch + images, self._epoch_seconds + took
        self._trained, self._seconds = self._trained + images, self._seconds + took
        self.steps = max(1, min(REPORT_STEPS, int(REPORT_SECONDS * steps / max(took, 1e-9))))
        return took

    def trained(self, loss: float) -> None:
        """Report the loss of the last step."""
        self._loss = loss
        self._report()

    def checking(self, checked: int, to_check: int, seconds: float) -> None:
        """Report a check that has taken so many seconds."""
        self._check_seconds = seconds
        self._report(phase="checking", checked=checked, to_check=to_check)

    def warn(self, warning: str) -> None:
        """Report a warning."""
        self._report(phase="checking", warning=warning)

    def _report(
        self,
        *,
        phase: Phase = "training",
        checked: int = 0,
        to_check: int = 0,
        warning: str = "",
    ) -> None:
        if self.progress is None:
            return
        seen, total = (self._epoch - 1) * self.images + self._seen, self.epochs * self.images
        pace = self._seconds / self._trained if self._trained else 0.0
        checks = checks_after(self._epoch, self.epochs, self.images)
        self.progress(
            Progress(
                epoch=self._epoch,
                epochs=self.epochs,
                images=seen,
                total=total,
                loss=self._loss,
                images_per_second=self._in_epoch / self._epoch_seconds if self._epoch_seconds else 0.0,
                seconds_left=(total - seen) * pace + checks * self._check_seconds,
                phase=phase,
                checked=checked,
                to_check=to_check,
                warning=warning,
            )
        )
