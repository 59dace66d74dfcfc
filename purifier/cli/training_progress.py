"""What ``purifier train`` shows while it works: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from ..interrupts import ENDS
from ..training.progress import Progress
from .progress import LINE_SECONDS, duration


@contextmanager
def training_progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Yield the argument ``progress`` of training, which shows it on a console.

    If training is interrupted, what it says about its state is printed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rest]}"))
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False, rest="")
        last = -LINE_SECONDS

        def show(now: Progress) -> None:
            nonlocal last
            what, *rest = parts_of(now)
            bar.update(
                task, visible=True, description=what, completed=now.images, total=now.total, rest=", ".join(rest)
            )
            if now.warning:
                console.print(f"epoch {now.epoch}/{now.epochs}: {now.warning}", markup=False)
                return
            ends = now.images == now.total and now.checked == now.to_check
            seen = [] if now.phase == "labelling" else [f"{now.images} of {now.total} images"]
            if now.phase == "starting" and not console.is_terminal:
                console.print(", ".join((what, *seen)), markup=False)
            elif not console.is_terminal and (ends or time.monotonic() - last >= LINE_SECONDS):
                last = time.monotonic()
                console.print(", ".join((what, *seen, *rest)), markup=False)

        try:
            yield show
        except ENDS as end:
            bar.stop()
            for note in getattr(end, "__notes__", ()):
                console.print(note, markup=False)
            raise


def parts_of(now: Progress) -> list[str]:
    """Where training is, its loss and speed, and the time left, each in words."""
    what = f"epoch {now.epoch}/{now.epochs}"
    if now.phase == "starting":
        return [what]
    if now.phase == "labelling":
        return [f"labelled {now.checked} of {now.to_check} images with the classifier's answers"]
    if now.phase == "checking":
        what += f", checked {now.checked} of {now.to_check} images"
    speed = f"{now.images_per_second:.3g}" if now.images_per_second < 100 else f"{now.images_per_second:.0f}"
    left = [f"about {duration(now.seconds_left)} left"] if now.seconds_left >= 1 else []
    return [what, f"loss {now.loss:.4g}", f"{speed} images/s", *left]
