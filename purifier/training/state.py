"""The files of a run besides its checkpoint: the state it can resume from, and its log."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import atomic_write
from ..contracts.checkpoint import read_tensors, write_tensors
from ..errors import CheckpointError, OutputError, TrainingError
from .optimisation import Follower

STATE_KEY = "purifier.training"
ROWS = "rows"


@dataclass
class Within:
    """How far training is inside an epoch: what a state in the middle of one holds beside the weights."""

    epoch: int
    step: int = 0
    """The steps that are done."""
    rows: list[Tensor] = field(default_factory=list)
    """The loss terms of each of these steps, (terms,)."""
    names: list[str] = field(default_factory=list)
    """The names of the terms."""
    seconds: float = 0.0
    """How long these steps took."""


@dataclass(frozen=True)
class State:
    """What a state says besides weights, averages and the optimizer's moments."""

    entry: dict[str, Any] | None
    """The log entry of the last whole epoch; None in the first epoch."""
    within: Within | None
    """How far the next epoch is; None between two epochs."""
    checked: bool
    """Whether the weights have passed the recipe's check."""

    @property
    def epoch(self) -> int:
        """The number of whole epochs."""
        return self.entry["epoch"] if self.entry else 0


def state_path(out: Path) -> Path:
    """``a/b.safetensors`` -> ``a/b.train.safetensors``."""
    return out.with_name(f"{out.stem}.train.safetensors")


def checked_path(out: Path) -> Path:
    """``a/b.safetensors`` -> ``a/b.train-checked.safetensors``: the last state that passed a check, if a later one has
    not been checked yet."""
    return out.with_name(f"{out.stem}.train-checked.safetensors")


def log_path(out: Path) -> Path:
    """``a/b.safetensors`` -> ``a/b.log.jsonl``."""
    return out.with_name(f"{out.stem}.log.jsonl")


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise ``OutputError`` if a new run would replace another's files, or a file that is not a training state."""
    for state in (state_path(out), checked_path(out)):
        if not os.path.lexists(state):
            continue
        _check_is_state(state)
        if not overwrite:
            raise OutputError(
                f"{state} holds the state of a stopped run; go on with it by --resume (resume=True), replace it "
                "by --overwrite (overwrite=True), or choose another name",
                state,
            )
    for path in (out, log_path(out)):
        if os.path.lexists(path) and not overwrite:
            raise OutputError(
                f"{path} is there already, from another run; replace it by --overwrite (overwrite=True), or choose "
                "another name",
                path,
            )


def _check_is_state(path: Path) -> None:
    try:
        _, metadata = read_tensors(path)
    except CheckpointError:
        metadata = {}
    if STATE_KEY not in metadata:
        raise OutputError(
            f"{path} exists and is not a training state, but training saves its state there; "
            "move it, or give the checkpoint another name",
            path,
        )


def write_state(path: Path, follower: Follower, settings: Mapping[str, Any], state: State) -> None:
    """Write atomically everything that later steps depend on."""
    described: dict[str, Any] = {"settings": settings, "entry": state.entry, "checked": state.checked}
    tensors, within = _tensors(follower), state.within
    if within is not None:
        described["within"] = {name: getattr(within, name) for name in ("epoch", "step", "names", "seconds")}
        if within.rows:
            tensors[ROWS] = torch.stack(within.rows)
    write_tensors(tensors, path, {STATE_KEY: described})


def read_state(path: Path, follower: Follower, settings: Mapping[str, Any]) -> State:
    """Load a state into weights, optimizer and average.

    Raises
    ------
    TrainingError
        There is no state, it belongs to a run with other settings, or such a run cannot have written it.
    CheckpointError
        The file is damaged.
    """
    if not path.is_file():
        raise TrainingError(
            f"nothing to resume: there is no training state {path} (training removes it when it ends); start without "
            "resume"
        )
    tensors, metadata = read_tensors(path)
    state = _check_state(path, tensors, metadata.get(STATE_KEY), _tensors(follower), settings)
    follower.module.load_state_dict(_below("weights.", tensors))
    if follower.average is not None:
        follower.average.load_state_dict(_below("average.", tensors))
        follower.averaged.copy_(tensors["averaged"])
    for index, weight in enumerate(follower.weights):
        follower.remember(weight, _below(f"optimizer.{index}.", tensors))
    return state


def settings_of(path: Path) -> dict[str, Any]:
    """The settings of the run that wrote a state; empty if there is no such state, which ``read_state`` explains."""
    try:
        found = read_tensors(path)[1].get(STATE_KEY)
    except CheckpointError:
        return {}
    settings = found.get("settings") if isinstance(found, dict) else None
    return settings if isinstance(settings, dict) else {}


def epoch_of(path: Path) -> int:
    """The number of whole epochs in a state."""
    return int(read_tensors(path)[1][STATE_KEY]["entry"]["epoch"])


def _tensors(follower: Follower) -> dict[str, Tensor]:
    tensors = {f"weights.{key}": value for key, value in follower.module.state_dict().items()}
    if follower.average is not None:
        tensors |= {f"average.{key}": value for key, value in follower.average.state_dict().items()}
        tensors["averaged"] = follower.averaged
    for index, weight in enumerate(follower.weights):
        tensors |= {f"optimizer.{index}.{key}": value for key, value in follower.moments(weight).items()}
    return tensors


def _check_state(
    path: Path,
    tensors: dict[str, Tensor],
    content: object,
    expected: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> State:
    """Raise for anything that ``write_state`` would not write in such a run."""
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is not a training state; start without resume")
    before = content.get("settings")
    if not isinstance(before, dict):
        raise _damaged(path, f"expected settings, got {before!r}")
    for key, value in _as_read_back(settings).items():
        if before.get(key) != value:
            raise TrainingError(
                f"cannot resume {path}: expected {key} {before.get(key)!r} as in the state, got {value!r}; "
                "use the same, or start without resume"
            )
    entry, within = content.get("entry"), content.get("within")
    if entry is not None or within is None:
        _check_entry(path, entry)
    done = entry["epoch"] if entry else 0
    position = None if within is None else _position(path, within, done, tensors.pop(ROWS, None))
    _check_tensors(path, tensors, expected)
    # States written before there were checks in them are those of whole epochs, which had passed.
    return State(entry, position, bool(content.get("checked", within is None)))


def _damaged(path: Path, what: str) -> TrainingError:
    return TrainingError(f"the training state {path} is damaged: {what}; start without resume")


def _check_entry(path: Path, entry: object) -> None:
    """Raise unless this is the log entry of an epoch."""
    epoch, terms = (entry.get("epoch"), entry.get("terms")) if isinstance(entry, dict) else (None, None)
    if not (isinstance(entry, dict) and type(epoch) is int and epoch >= 1 and isinstance(terms, dict)):
        raise _damaged(path, f"expected the log entry of an epoch with its terms, got {entry!r}")
    figures = entry.get("figures", {})
    if not (terms and isinstance(figures, dict)):
        raise _damaged(path, f"expected terms and figures in its log entry, got {terms!r} and {figures!r}")
    for figure in (*terms.values(), *figures.values(), entry.get("images_per_second")):
        if not _is_number(figure):
            raise _damaged(path, f"expected numbers in its log entry, got {figure!r}")


def _position(path: Path, within: object, done: int, rows: Tensor | None) -> Within:
    """How far the epoch after ``done`` whole ones is; raise unless it is described as ``write_state`` does."""
    found = within if isinstance(within, dict) else {}
    names = found.get("names")
    epoch, step = (-1 if type(found.get(name)) is not int else int(found[name]) for name in ("epoch", "step"))
    if not (
        epoch == done + 1
        and step >= 0
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and _is_number(found.get("seconds"))
    ):
        raise _damaged(path, f"expected a place in epoch {done + 1}, got {within!r}")
    rows = torch.empty(0, len(names)) if rows is None else rows
    if rows.shape != (step, len(names)) or not rows.isfinite().all():
        raise _damaged(path, f"expected the loss of {step} steps, ({step}, {len(names)}), got {tuple(rows.shape)}")
    return Within(epoch, step, list(rows.unbind()), names, float(found["seconds"]))


def _is_number(figure: object) -> bool:
    return isinstance(figure, int | float) and math.isfinite(figure)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless the tensors are finite and have the names, shapes and dtypes of ``expected``."""
    for name in sorted(tensors.keys() | expected.keys()):
        found, wanted = (_shape_and_dtype(group.get(name)) for group in (tensors, expected))
        if found != wanted:
            raise _damaged(path, f"{name}: expected {wanted}, got {found}")
        if not tensors[name].isfinite().all():
            raise _damaged(path, f"{name} holds NaN or infinity")
        nonnegative = name == "averaged" or (name.startswith("optimizer.") and name.endswith((".step", ".exp_avg_sq")))
        if nonnegative and tensors[name].min() < 0:
            raise _damaged(path, f"{name}: expected no negative numbers")


def _shape_and_dtype(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype}"


def read_log(path: Path, *, until: int) -> list[dict[str, Any]]:
    """The entries of a log up to epoch ``until``, without the settings; none if there is no log."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # an edited log must not stop a run
            continue
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int) and entry["epoch"] <= until:
            kept.append(entry)
    return kept


def write_log(path: Path, settings: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line: the settings, then an entry for each epoch."""
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in ({"settings": settings}, *entries)))


def _as_read_back(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they come back from JSON, where tuples become lists."""
    return dict(json.loads(json.dumps(settings)))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
