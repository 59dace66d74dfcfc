"""The files of a run beside its checkpoint: the state it can go on from, and its log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import atomic_write
from ..checkpoint import read_tensors, write_tensors
from ..errors import TrainingError
from ..interfaces import Purifier

KEY = "purifier.training"


def state_path(out: Path) -> Path:
    """``a/b.safetensors`` -> ``a/b.train.safetensors``."""
    return out.with_name(f"{out.stem}.train.safetensors")


def log_path(out: Path) -> Path:
    """``a/b.safetensors`` -> ``a/b.log.jsonl``."""
    return out.with_name(f"{out.stem}.log.jsonl")


def write_state(
    path: Path,
    purifier: Purifier,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    entry: Mapping[str, Any],
) -> None:
    """Write atomically all that the epochs after ``entry``, the log entry of the last one, depend on."""
    tensors = {f"weights.{key}": value for key, value in purifier.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    write_tensors(tensors, path, {KEY: {"settings": settings, "entry": entry}})


def read_state(
    path: Path, purifier: Purifier, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Load a state into purifier and optimizer; returns the log entry of its last epoch.

    Raises
    ------
    TrainingError
        There is no state, or it is of a run with other settings.
    CheckpointError
        The file is damaged.
    """
    if not path.is_file():
        raise TrainingError(
            f"nothing to resume: no training state {path} (it is removed when training ends); start without resume"
        )
    tensors, metadata = read_tensors(path)
    if KEY not in metadata:
        raise TrainingError(f"{path} is not a training state; start without resume")
    before = metadata[KEY]["settings"]
    for key, value in _plain(settings).items():
        if before.get(key) != value:
            raise TrainingError(
                f"cannot resume {path}: its {key} is {before.get(key)!r}, this run's is {value!r}; "
                "give the same, or start without resume"
            )
    try:
        purifier.load_state_dict(_below("weights.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"{path} does not fit the purifier: {error}; start without resume") from error
    return dict(metadata[KEY]["entry"])


def read_log(path: Path, *, until: int) -> list[dict[str, Any]]:
    """The entries of a log up to epoch ``until``, without the settings; none if there is no log."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # someone's edit must not stop a run
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
