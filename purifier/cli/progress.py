"""The progress bar that commands show during an audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def audit_progress(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar that disappears at the end; yield the ``progress`` argument of ``purifier.audit``."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield show
