"""Read weights from files as people hold them, and load them into a module. Nothing is unpickled but plain data."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts.checkpoint import read_tensors
from ..errors import ClassifierError
from ..foreign_code import explained, first_line

TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".th")
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts store a state dict, with the optimizer's and others beside it."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, ``torch.compile`` and Lightning put before every key."""
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
MISFITS = (RuntimeError, TypeError, AttributeError, ValueError)
LISTED = 5
COUNTERS = "num_batches_tracked"
"""Of batch norms; files from before torch 0.4.1 have none, and fit all the same, so other missing keys come first."""


def read_weights(path: Path) -> Mapping[str, Any]:
    """What a file of weights holds: safetensors, or ``torch.save``'s with nothing but plain data in it.

    Raises
    ------
    ClassifierError, CheckpointError
        The file is missing or damaged, or holds objects that would have to be unpickled.
    """
    if path.suffix.lower() not in TORCH_FILES or not path.is_file():
        return read_tensors(path)[0]
    failure, make = f"{path} cannot be read as plain weights", partial(ClassifierError, path=path)
    advice = "save a state_dict, preferably as safetensors"
    # Training scripts store their arguments too; a Namespace only holds values.
    plain = torch.serialization.safe_globals([argparse.Namespace])
    with explained(failure, make, advice, describe=_unreadable), plain:
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise ClassifierError(
            f"{path}: expected a state dict, a mapping from names to tensors, got {type(found).__name__}; save "
            "model.state_dict()",
            path,
        )
    return found


def state_for(module: nn.Module, found: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The state dict for a module in what a file holds.

    It may lie under one of ``WRAPPERS``, and all its keys may have ``PREFIXES`` that the module's own do not have.

    Raises
    ------
    ClassifierError
        The file holds no state dict.
    """
    own = set(module.state_dict())
    state, place = found, ""
    while not own & set(state):
        inside = next((name for name in WRAPPERS if isinstance(state.get(name), Mapping)), None)
        if inside is None:
            break
        state, place = state[inside], f"{place}[{inside!r}]"
    nameless = next((key for key in state if not isinstance(key, str)), None)
    if nameless is not None:
        raise ClassifierError(
            f"{path}{place}: expected a state dict, from names to tensors, got the key {nameless!r}; save "
            "model.state_dict()",
            path,
        )
    if not any(isinstance(value, Tensor) for value in state.values()) and own:
        raise ClassifierError(
            f"{path}{place}: expected a state dict, from names to tensors, or one in {', '.join(map(repr, WRAPPERS))}; "
            f"got the keys {_some(list(state))}; save model.state_dict()",
            path,
        )
    return _without_prefixes(state, own)


def load_weights(module: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Load the result of ``state_for``.

    Raises
    ------
    ClassifierError
        It does not fit; the error names keys that are missing, unexpected or of another shape.
    """
    try:
        module.load_state_dict(state)
    except MISFITS as error:
        if _fits_this_version(module, state):
            return
        differences = _differences(module, state) or first_line(error)
        raise ClassifierError(
            f"{path} does not fit {type(module).__name__}: {differences}; give the weights of this model, or the model "
            "of these weights",
            path,
        ) from error


def _fits_this_version(module: nn.Module, state: Mapping[str, Any]) -> bool:
    """Load it as if it had been saved by today's versions of the layers, which safetensors files do not tell."""
    versioned = OrderedDict(state)
    versioned._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]  # torch keeps the layers' versions there
    try:
        module.load_state_dict(versioned)
    except MISFITS:
        return False
    return True


@contextmanager
def weights_only() -> Iterator[None]:
    """Forbid unpickling inside: ``torch.load`` then reads plain data only, whoever calls it and how."""
    before, logger = os.environ.get(FORCE_WEIGHTS_ONLY), logging.getLogger("torch.export")
    level = logger.level
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    logger.setLevel(logging.CRITICAL)  # a failure raises an exception; the log would repeat it with a traceback
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.pop(FORCE_WEIGHTS_ONLY)
        if before is not None:
            os.environ[FORCE_WEIGHTS_ONLY] = before


def _without_prefixes(state: Mapping[str, Any], own: set[str]) -> Mapping[str, Any]:
    while state and not own & set(state):
        prefix = next((one for one in PREFIXES if all(key.startswith(one) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    if any("._orig_mod." in key for key in state) and not any("._orig_mod." in key for key in own):
        state = {key.replace("._orig_mod.", "."): value for key, value in state.items()}  # a layer was compiled
    return state


def _differences(module: nn.Module, state: Mapping[str, Any]) -> str:
    own = module.state_dict()
    found = {
        "missing": sorted((name for name in own if name not in state), key=lambda name: name.endswith(COUNTERS)),
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} ({_shape(state[name])}, not {_shape(value)})"
            for name, value in own.items()
            if name in state and _shape(state[name]) != _shape(value)
        ],
    }
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in found.items() if names)


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "a number" if isinstance(value, Tensor) else type(value).__name__


def _some(names: Sequence[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "") if names else "none"


def _unreadable(error: BaseException) -> str:
    # Torch's own message advises unpickling anyway.
    return "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else first_line(error)
