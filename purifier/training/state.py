"""The files of a run beside its checkpoint: the state it can go on from, and its log."""

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


def check_replaceable(path: Path) -> None:
    """Raise :class:`OutputError` if what lies where a state goes is not a state, but somebody's own file."""
    if not os.path.lexists(path):
        return
    try:
        _, metadata = read_tensors(path)
    except CheckpointError:
        metadata = {}
    if STATE_KEY not in metadata:
        raise OutputError(
            f"{path} is in the way: training keeps its state there, and this file is no training state; "
            "move it, or give the checkpoint another name",
            path,
        )


def write_state(path: Path, follower: Follower, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Write atomically all that the epochs after ``entry``, the log entry of the last one, depend on."""
    write_tensors(_tensors(follower), path, {STATE_KEY: {"settings": settings, "entry": entry}})


def read_state(path: Path, follower: Follower, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Load a state into weights, optimizer and average; returns the log entry of its last epoch.

    Raises
    ------
    TrainingError
        There is no state, it is of a run with other settings, or it is not what such a run writes.
    CheckpointError
        The file is damaged.
    """
    if not path.is_file():
        raise TrainingError(
            f"nothing to resume: no training state {path} (it is removed when training ends); start without resume"
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
    described: object,
    expected: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Reject all that :func:`write_state` would not have written in such a run; returns the log entry."""
    if not isinstance(described, dict):
        raise TrainingError(f"{path} is not a training state; start without resume")

    def damaged(what: str) -> TrainingError:
        return TrainingError(f"the training state {path} is damaged: {what}; start without resume")

    before, entry = described.get("settings"), described.get("entry")
    if not isinstance(before, dict):
        raise damaged(f"expected settings, got {before!r}")
    for key, value in _plain(settings).items():
        if before.get(key) != value:
            raise TrainingError(
                f"cannot resume {path}: its {key} is {before.get(key)!r}, this run's is {value!r}; "
                "give the same, or start without resume"
            )
    epoch, terms = (entry.get("epoch"), entry.get("terms")) if isinstance(entry, dict) else (None, None)
    if not (isinstance(entry, dict) and type(epoch) is int and epoch >= 1 and isinstance(terms, dict)):
        raise damaged(f"expected the entry of an epoch with its terms, got {entry!r}")
    figures = entry.get("figures", {})
    if not (terms and isinstance(figures, dict)):
        raise damaged(f"expected terms and figures in the entry of its epoch, got {terms!r} and {figures!r}")
    for figure in (*terms.values(), *figures.values(), entry.get("images_per_second")):
        if not (isinstance(figure, int | float) and math.isfinite(figure)):
            raise damaged(f"expected numbers in the entry of its epoch, got {figure!r}")
    for name in sorted(tensors.keys() | expected.keys()):
        found, wanted = (_kind(group.get(name)) for group in (tensors, expected))
        if found != wanted:
            raise damaged(f"{name}: expected {wanted}, got {found}")
        if not tensors[name].isfinite().all():
            raise damaged(f"{name} holds NaN or infinity")
        counted = name == "averaged" or (name.startswith("optimizer.") and name.endswith((".step", ".exp_avg_sq")))
        if counted and tensors[name].min() < 0:
            raise damaged(f"{name}: expected no number below 0")
    return entry


def _kind(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype}"


def read_log(path: Path, *, until: int) -> list[dict[str, Any]]:
    """The entries of a log up to epoch ``until``, without the settings; none if there is no log."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # someone's edit must not stop a run
            continue
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int) and entry["epoch"] <= until:
            kept.append(entry)
    return kept


def write_log(path: Path, settings: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line: the settings, then an entry for each epoch."""
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in ({"settings": settings}, *entries)))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON, where tuples are lists."""
    return dict(json.loads(json.dumps(settings)))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
