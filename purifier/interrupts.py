"""Interrupts: Ctrl-C and ending signals stop a run at once, but not while weights or files are being changed."""

from __future__ import annotations

import signal
from types import TracebackType

from .foreign_code import Interrupted


class Terminated(Interrupted):
    """A signal that ends the program, such as SIGTERM; no handler mistakes it for a failing attack."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.code = 128 + number
        """The exit code."""


ENDS = (KeyboardInterrupt, Interrupted, SystemExit)
"""What ends a run from outside, and is no failure of it; SystemExit comes from output whose reader has gone."""


def described(end: BaseException) -> str:
    """How a run was ended, such as ``stopped by SIGTERM``."""
    if isinstance(end, Terminated):
        return f"stopped by {signal.Signals(end.number).name}"
    return "stopped by Ctrl-C" if isinstance(end, KeyboardInterrupt) else f"stopped: {end or type(end).__name__}"


class Holder:
    """Holds back interrupts inside its ``with`` block, until the end of the outermost one."""

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: BaseException | None = None

    def deliver(self, end: BaseException) -> None:
        """Raise what a signal handler has to raise, or keep it for the end of the block; only the first is kept."""
        if not self._depth:
            raise end
        self._waiting = self._waiting or end

    @property
    def number(self) -> int:
        """The number of the signal that waits for the end of the block, or 0."""
        if self._waiting is None:
            return 0
        return self._waiting.number if isinstance(self._waiting, Terminated) else int(signal.SIGINT)

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if not self._depth and self._waiting is not None:
            end, self._waiting = self._waiting, None
            raise end


held = Holder()
"""The one that the command line's signal handlers ask, because signals are the process's."""
