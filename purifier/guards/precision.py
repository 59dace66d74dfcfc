"""Audits and exports run in float32; a guard that was moved to float64 is told so."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..data.pixels import DTYPES
from ..errors import ConfigError
from .module import GuardedModule


def refuse_double(guard: Any, what: str) -> None:
    """Raise ``ConfigError`` if a guard's weights are float64, as after ``.double()``.

    A float64 classifier that says so, with ``Preprocessing(dtype="float64")``, may stand behind a float32 purifier.
    """
    if not isinstance(guard, GuardedModule):
        return
    classifier = weights_dtype(guard.classifier)
    declared = DTYPES[guard.preprocessing.dtype] == torch.float64
    if weights_dtype(guard.purifier) == torch.float64 or (classifier == torch.float64 and not declared):
        raise ConfigError(
            f"{what}: this guard's weights are float64, expected float32; call .float() on the guard first"
        )


def dtype_advice(classifier: nn.Module, declared: str) -> str:
    """What to do for a classifier that may fail because its images are not of the type of its weights; or nothing."""
    dtype = weights_dtype(classifier)
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name not in DTYPES or dtype == DTYPES[declared]:
        return ""
    return f"; its weights are {name}: say so with preprocessing=purifier.Preprocessing(dtype={name!r})"


def weights_dtype(module: nn.Module) -> torch.dtype | None:
    """The type of the first weights that are floats; None if there are none."""
    return next((one.dtype for one in module.parameters() if one.is_floating_point()), None)
