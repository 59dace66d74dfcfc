"""The progress bar that commands show on standard error while they work."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from .console import plain_console

LINE_SECONDS = 30.0
"""Between two lines where there is no terminal."""
SETTLING, RECENT = 2.0, 600.0
"""Seconds at the start that the time left does not count, and seconds before now that it does."""


class _Bar(Progress):
    """A bar with the time left, and below it what is running."""

    what = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.what)


@contextmanager
def audit_progress(*, quiet: bool = False) -> Iterator[Callable[[float, int, str], None]]:
    """Show a bar on standard error that disappears at the end, or a line now and then if that is no terminal.

    Yields the argument ``progress`` of an audit; ``quiet`` shows nothing. The bar is drawn when ``progress`` is called,
    not by a thread: a closed pipe then ends the command.
    """
    console = plain_console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    with _Bar(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,
        disable=quiet or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task, began = bar.add_task("", total=None, left=""), time.monotonic()
        last, recent = began, deque([(began, 0.0)])

        def show(done: float, total: int, what: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - began < SETTLING:  # what a journal has is done at once, and says nothing about the rest
                recent.clear()
            recent.append((now, done))
            while now - recent[0][0] > RECENT and len(recent) > 2:
                recent.popleft()
            since, before = recent[0]
            left = time_left(now - since, done - before, total - before)
            bar.what = what
            bar.update(task, completed=done, total=total, left=left)
            bar.refresh()
            if not (quiet or console.is_terminal) and now - last >= LINE_SECONDS:
                last = now
                line = [f"{done / total:.0%}", *([left] if left else []), what]
                console.print(", ".join(line), markup=False, soft_wrap=True)

        yield show


def time_left(seconds: float, done: float, total: float) -> str:
    """The time that is left if the rest goes as fast as what is done after ``seconds``, such as ``about 1:05 left``."""
    if seconds < 1 or not 0 < done < total:
        return ""
    return f"about {duration(seconds * (total - done) / done)} left"


def duration(seconds: float) -> str:
    """``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
