"""The epochs of a run, from a state or from the start, and the checkpoint at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contracts import checkpoint
from ..contracts.purifier import Purifier
from ..errors import TrainingError
from ..interrupts import ENDS
from ..torch_tools.memory_need import out_of_memory
from .check import is_checked
from .classifier_checks import fingerprint
from .epoch import Run
from .failures import NotFinite
from .recipe import Collapse
from .state import State, log_path, read_log, state_path, write_log


def run_epochs(
    run: Run,
    out: Path,
    settings: Mapping[str, Any],
    header: Mapping[str, Any],
    state: State | None,
    save_every: int,
) -> dict[str, Any]:
    """Train what comes after ``state``, writing states and log; return the entry of the last whole epoch.

    The run is resumed from a state whose weights are already in the purifier. If ``state`` is inside the epoch after
    the last one wanted, it becomes the result as it is.
    """
    log, epochs, saver = log_path(out), run.epochs, run.saver
    done = state.epoch if state else 0
    if done > epochs:
        raise TrainingError(f"{state_path(out)} is already at epoch {done}, expected at most {epochs}; raise epochs")
    writes = run.processes.rank == 0
    entries = read_log(log, until=done) if done else []
    if done and writes:  # the log is this run's own; another run's log stays until this run has finished an epoch
        write_log(log, header, entries)
    if state is None:
        run.recipe.begin(run.purifier, run.data, run.classifier, run.device)
    run.within = state.within if state else None
    if run.within is not None and run.within.step > run.steps:
        raise TrainingError(
            f"the training state {state_path(out)} is damaged: expected at most {run.steps} steps in an epoch, got "
            f"{run.within.step}; start without resume"
        )
    if run.within is not None and done == epochs:
        assert saver.entry is not None
        return {**saver.entry, "reached": round(done + run.within.step / run.steps, 4)}
    try:
        for epoch in range(done + 1, epochs + 1):
            entry = _explained_epoch(run, epoch)
            if run.classifier is not None and fingerprint(run.classifier) != settings["classifier"]:
                raise TrainingError(
                    f"{run.classifier.describe()} changed during training; remove the side effect that changes it"
                )
            run.end_epoch(entry)
            entries.append(entry)
            if writes:
                write_log(log, header, entries)
            if epoch % save_every == 0 or epoch == epochs:
                saver.write(None, checked=not run.recipe.can_collapse or is_checked(epoch, epochs, len(run.data)))
    except ENDS as end:
        run.save_interrupted()
        end.add_note(saver.how_to_go_on())
        raise
    assert saver.entry is not None  # epochs is 1 or more
    return saver.entry


def _explained_epoch(run: Run, epoch: int) -> dict[str, Any]:
    """Train an epoch; failures say what is saved."""
    saver = run.saver
    try:
        return run.epoch(epoch)
    except NotFinite as problem:
        lr = run.follower.settings.lr
        raise TrainingError(f"{problem}; start again with lr below {lr:g}; {saver.where()}") from None
    except Collapse as problem:
        saver.go_back()
        raise TrainingError(f"{problem}; {saver.where()}") from problem
    except TrainingError as problem:
        raise TrainingError(f"{problem}; {saver.where()}") from problem
    except (RuntimeError, MemoryError) as problem:
        if not out_of_memory(problem):
            raise
        raise TrainingError(f"out of memory; lower batch_size or the purifier's sizes; {saver.where()}") from problem


def finish(run: Run, out: Path, header: Mapping[str, Any], entry: Mapping[str, Any]) -> Purifier:
    """Write the checkpoint, remove the states, and return the checkpoint loaded."""
    processes = run.processes
    if processes.rank == 0:
        metrics = {
            **entry["terms"],
            **entry.get("figures", {}),
            "epochs": entry.get("reached", entry["epoch"]),
            "images_per_second": entry["images_per_second"],
        }
        result = run.follower.result
        assert isinstance(result, Purifier)
        top_level = ("recipe", "classifier", "seed", "data")
        provenance = {name: header[name] for name in top_level}
        training = {name: header[name] for name in header if name not in (*top_level, "plugin", "config")}
        checkpoint.save(result, out, **provenance, training=training, metrics=metrics)
    processes.wait()
    trained = checkpoint.load(out)
    processes.wait()
    run.saver.remove()
    return trained
