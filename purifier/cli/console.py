"""The console that commands print to."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console

FAILED, INCONCLUSIVE = 1, 3
"""Exit codes of an audit: a gate failed; flags, failed attacks or too few attacks leave it open."""
BROKEN_PIPE = 141
"""128 + SIGPIPE: the exit code of a command whose reader (``head``, say) has closed the pipe."""


class _PipedConsole(Console):
    def on_broken_pipe(self) -> None:
        """End with the shell's exit code for a closed pipe; rich's own is 1, which here means a failed gate."""
        self.quiet = True  # a progress bar still clears itself
        stream = sys.stderr if self.stderr else sys.stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or the interpreter complains at exit
        raise SystemExit(BROKEN_PIPE)


def plain_console(**options: Any) -> Console:
    """A rich console that prints text as it is: rich would show the ``:train:`` in a DATA spec as a picture."""
    return _PipedConsole(highlight=False, emoji=False, **options)


def result_console(*, quiet: bool, stderr: bool) -> Console:
    """A console for all that is neither an error nor data for another program; ``quiet`` leaves it out."""
    return plain_console(quiet=quiet, stderr=stderr)
