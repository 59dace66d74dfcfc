"""Checks the arguments of train() before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from ..atomic import atomic_path
from ..errors import ConfigError, OutputError
from .state import checked_path, log_path, state_path


class _TrialWrite(Exception):
    """Ends a trial write before it replaces anything."""


def check_kinds(
    plugin: object,
    out: object,
    config: object,
    recipe: object,
    progress: object,
    weights: object,
    root: object,
    size: object,
    init: object,
) -> None:
    """Raise ``ConfigError`` if an argument of ``purifier.train`` has the wrong type."""
    for name, value, kinds, wanted in (
        ("plugin", plugin, str, "the name of a plugin"),
        ("out", out, str | Path, "a file name"),
        ("config", config, Mapping | None, "options by name"),
        ("recipe", recipe, str, "a recipe, such as 'robust:eps=0.1'"),
        ("weights", weights, str | Path | None, "a file name"),
        ("root", root, str | Path | None, "a folder"),
        ("size", size, str | None, "the name of a size, such as 'small'"),
        ("init", init, str | Path | None, "a checkpoint"),
    ):
        if not isinstance(value, kinds):
            raise ConfigError(f"{name}: expected {wanted}, got {value!r}")
    for name in config if isinstance(config, Mapping) else ():
        if not isinstance(name, str):
            raise ConfigError(f"config: expected options by name, got {name!r}")
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress: expected a function that takes a Progress, got {progress!r}")


def check_out(out: Path, read: Iterable[object]) -> None:
    """Try all writes before the work, without leaving a file; raise if ``out`` is one of the files ``read``."""
    try:
        bad_name = b"\0" in str(out.absolute()).encode()
    except UnicodeEncodeError:
        bad_name = True
    if bad_name:
        raise OutputError(f"cannot write {str(out)!r}: expected a name in UTF-8 without null characters", "")
    if out.suffix != ".safetensors":
        raise OutputError(f"cannot write {out}: expected a name ending in .safetensors", out)
    for end in (".train.safetensors", ".train-checked.safetensors"):
        if out.name.endswith(end):
            raise OutputError(f"cannot write {out}: {end} is for training states; give another name", out)
    for file in read:
        if isinstance(file, str | Path) and out.exists() and Path(file).exists() and out.samefile(file):
            raise OutputError(f"cannot write {out}: this run reads its weights from that file; give another name", out)
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process writes
        return
    for path in (out, state_path(out), checked_path(out), log_path(out)):
        with suppress(_TrialWrite), atomic_path(path):
            raise _TrialWrite


def check_numbers(
    epochs: int, batch_size: int | None, seed: int, save_every: int, save_minutes: float, max_weights: int
) -> None:
    """Raise ``ConfigError`` if a number is out of range; without a batch size, one is chosen later."""
    counts = {"epochs": epochs, "batch_size": batch_size, "save_every": save_every, "max_weights": max_weights}
    for name, value in counts.items():
        if name == "batch_size" and value is None:
            continue
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name}: expected a whole number, 1 or more, got {value!r}")
    if type(seed) is not int:
        raise ConfigError(f"seed: expected a whole number, got {seed!r}")
    if not (isinstance(save_minutes, int | float) and save_minutes >= 0):
        raise ConfigError(f"save_minutes: expected a number of minutes, 0 or more, got {save_minutes!r}")


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name; raises ``ConfigError`` unless tensors can be created there."""
    if not isinstance(name, str | torch.device):
        raise ConfigError(f"device: expected a name such as 'cpu', got {name!r}")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # item() fails on the device meta, which zeros() accepts
    except (RuntimeError, AssertionError, ImportError) as error:  # torch asserts that it was built with CUDA
        raise ConfigError(f"device {str(name)!r} cannot be used ({error}); use 'cpu'") from error
    return device
