"""The files of a run besides its checkpoint: the state it can resume from, and its log."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import atomic_write
from ..contracts.checkpoint import read_tensors, write_tensors
from ..errors import CheckpointError, OutputError, TrainingError
from .optimisation import Follower

STATE_KEY = "purifier.training"


def state_path(out: Path) -> Path:
    """``a/b.safetensors`` -> ``a/b.train.safetensors``."""
    return out.with_name(f"{out.stem}.train.safetensors")


def log_path(out: Path) -> Path:
    """``a/b.safetensors`` -> ``a/b.log.jsonl``."""
    return out.with_name(f"{out.stem}.log.jsonl")


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise ``OutputError`` if a new run would replace another's files, or a file that is not a training state."""
    state = state_path(out)
    if os.path.lexists(state):
        _check_is_state(state)
        if not overwrite:
            raise OutputError(
                f"{state} holds the last epoch of a stopped run; go on with it by --resume (resume=True), replace it "
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


def write_state(path: Path, follower: Follower, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Write atomically everything that later epochs depend on; ``entry`` is the log entry of the last epoch."""
    write_tensors(_tensors(follower), path, {STATE_KEY: {"settings": settings, "entry": entry}})


def read_state(path: Path, follower: Follower, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Load a state into weights, optimizer and average; return the log entry of its last epoch.

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
    entry = _check_state(path, tensors, metadata.get(STATE_KEY), _tensors(follower), settings)
    follower.module.load_state_dict(_below("weights.", tensors))
    if follower.average is not None:
        follower.average.load_state_dict(_below("average.", tensors))
        follower.averaged.copy_(tensors["averaged"])
    for index, weight in enumerate(follower.weights):
        follower.remember(weight, _below(f"optimizer.{index}.", tensors))
    return entry


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
    tensors: Mapping[str, Tensor],
    content: object,
    expected: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Raise for anything that ``write_state`` would not write in such a run; return the log entry."""
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is not a training state; start without resume")

    def damaged(what: str) -> TrainingError:
        return TrainingError(f"the training state {path} is damaged: {what}; start without resume")

    before, entry = content.get("settings"), content.get("entry")
    if not isinstance(before, dict):
        raise damaged(f"expected settings, got {before!r}")
    for key, value in _as_read_back(settings).items():
        if before.get(key) != value:
            raise TrainingError(
                f"cannot resume {path}: expected {key} {before.get(key)!r} as in the state, got {value!r}; "
                "use the same, or start without resume"
            )
    epoch, terms = (entry.get("epoch"), entry.get("terms")) if isinstance(entry, dict) else (None, None)
    if not (isinstance(entry, dict) and type(epoch) is int and epoch >= 1 and isinstance(terms, dict)):
        raise damaged(f"expected the log entry of an epoch with its terms, got {entry!r}")
    figures = entry.get("figures", {})
    if not (terms and isinstance(figures, dict)):
        raise damaged(f"expected terms and figures in its log entry, got {terms!r} and {figures!r}")
    for figure in (*terms.values(), *figures.values(), entry.get("images_per_second")):
        if not (isinstance(figure, int | float) and math.isfinite(figure)):
            raise damaged(f"expected numbers in its log entry, got {figure!r}")
    for name in sorted(tensors.keys() | expected.keys()):
        found, wanted = (_shape_and_dtype(group.get(name)) for group in (tensors, expected))
        if found != wanted:
            raise damaged(f"{name}: expected {wanted}, got {found}")
        if not tensors[name].isfinite().all():
            raise damaged(f"{name} holds NaN or infinity")
        nonnegative = name == "averaged" or (name.startswith("optimizer.") and name.endswith((".step", ".exp_avg_sq")))
        if nonnegative and tensors[name].min() < 0:
            raise damaged(f"{name}: expected no negative numbers")
    return entry


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
