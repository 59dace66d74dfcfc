"""When a run's states are written, and which one is kept when training goes wrong."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import atomic_path
from ..interrupts import held
from .optimisation import Follower
from .state import State, Within, checked_path, epoch_of, state_path, write_state

BEFORE_A_CHECK = 1.0
"""A state is written before a check if the last one is older than this, in minutes: short epochs are quickly redone."""


class Saver:
    """Writes the states of a run.

    Parameters
    ----------
    out
        The checkpoint that the states belong to.
    follower
        Weights, averages and optimizers.
    settings
        What must be the same when the run is resumed.
    minutes
        The time between two states.
    writes
        Whether this process writes files.
    guarded
        Whether a check can fail; then the last state that passed one is kept until a later one has.
    state
        The state that the run was resumed from; None for a new run.
    """

    def __init__(
        self,
        out: Path,
        follower: Follower,
        settings: Mapping[str, Any],
        *,
        minutes: float,
        writes: bool,
        guarded: bool,
        state: State | None,
    ) -> None:
        self.path, self._checked_path = state_path(out), checked_path(out)
        self._follower, self._settings, self._minutes, self._writes = follower, settings, minutes, writes
        self._guarded = guarded
        self.entry = None if state is None else state.entry
        """The log entry of the last whole epoch."""
        self._position = None if state is None else (state.epoch, state.within.step if state.within else 0)
        self._is_checked = state is not None and state.checked
        found = state is not None and not state.checked and self._checked_path.is_file()
        self._checked_epoch = epoch_of(self._checked_path) if found else None
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last state is older than the time between two."""
        return self._minutes_ago() >= self._minutes

    def is_due_before_check(self) -> bool:
        """Whether a check that is stopped would cost more than a little."""
        return self._minutes_ago() >= min(self._minutes, BEFORE_A_CHECK)

    def write(self, within: Within | None, *, checked: bool = False) -> None:
        """Write a state of the weights as they are, unless the last one has this place."""
        position = (self.entry["epoch"] if self.entry else 0, 0 if within is None else within.step)
        if not any(position) or (position == self._position and checked == self._is_checked):
            return
        with held:
            if self._writes:
                self._write(State(self.entry, within, checked))
            if checked:
                self._checked_epoch = None
            elif self._is_checked and self._guarded:
                assert self._position is not None
                self._checked_epoch = self._position[0]
            self._position, self._is_checked = position, checked
            self._last = time.monotonic()

    def _write(self, state: State) -> None:
        if self._is_checked and self._guarded and not state.checked:
            with atomic_path(self._checked_path) as temporary:
                shutil.copyfile(self.path, temporary)
        write_state(self.path, self._follower, self._settings, state)
        if state.checked or not (self._guarded and (self._is_checked or self._checked_epoch)):
            self._checked_path.unlink(missing_ok=True)  # it is older, or another run's

    def go_back(self) -> None:
        """Replace a state that failed its check by the last one that passed; remove it if there is none."""
        if self._is_checked or self._position is None:
            return
        if self._writes and self._checked_epoch:
            self._checked_path.replace(self.path)
        elif self._writes:
            self.path.unlink(missing_ok=True)
        self._position = (self._checked_epoch, 0) if self._checked_epoch else None
        self._is_checked, self._checked_epoch = self._position is not None, None

    def remove(self) -> None:
        """Remove all states."""
        if self._writes:
            self.path.unlink(missing_ok=True)
            self._checked_path.unlink(missing_ok=True)

    def where(self) -> str:
        """What is saved, and how it becomes the checkpoint."""
        if self._position is None:
            return "nothing has been saved yet"
        epoch, step = self._position
        use = f"resume with epochs={epoch} to make it the checkpoint"
        if not step:
            return f"epoch {epoch} is saved in {self.path}: {use}"
        return f"epoch {epoch + 1} is saved up to step {step} in {self.path}" + (f": {use}" if epoch else "")

    def how_to_go_on(self) -> str:
        """What is saved, and how to go on with it."""
        if self._position is None:
            return "training was stopped; nothing has been saved yet"
        epoch, step = self._position
        reached = f"epoch {epoch + 1}, step {step}" if step else f"the end of epoch {epoch}"
        return (
            f"training was stopped; {self.path} holds it up to {reached}; "
            "go on with the same arguments and --resume (resume=True)"
        )

    def _minutes_ago(self) -> float:
        return (time.monotonic() - self._last) / 60
