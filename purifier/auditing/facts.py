"""The facts that a report records besides its results: versions, the guard, the settings."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Any

import onnxruntime
import torch

from ..contracts.purifier import Purifier, purifiers
from ..errors import PluginError
from ..rejection.calibration import Calibration
from .plan import Job


def versions(jobs: Sequence[Job]) -> dict[str, str]:
    """Name -> version of everything that ran, including the libraries of the attacks."""
    return {
        "purifier": version_of("adversarial-purifier"),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        **_libraries(jobs),
    }


def _libraries(jobs: Sequence[Job]) -> dict[str, str]:
    """Versions of the libraries whose attacks ran; an attack names its library in ``distribution``."""
    named = {str(getattr(job.named.attack, "distribution", "")) for job in jobs} - {""}
    return {name: version_of(name) for name in sorted(named)}


def describe_purifier(purifier: Purifier) -> dict[str, Any]:
    """The purifier's plugin, config and surrogate, and its checkpoint file if it came from one."""
    cls = type(purifier)
    try:
        plugin = purifiers.name_of(cls)
    except PluginError:
        plugin = f"{cls.__module__}:{cls.__qualname__}"
    return {
        "plugin": plugin,
        "config": as_json(purifier.config),
        "surrogate": "identity" if cls.surrogate is Purifier.surrogate else "own",
        "file": purifier.provenance.get("file"),
        "sha256": purifier.provenance.get("sha256"),
    }


def as_json(config: Any) -> dict[str, Any]:
    """A dataclass as it comes back from JSON: tuples become lists."""
    plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}
    return dict(json.loads(json.dumps(plain)))


def describe_calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    """The threshold and where it comes from; None if the purifier is not calibrated."""
    if calibration is None:
        return None
    return {name: getattr(calibration, name) for name in ("fpr", "threshold", "data", "count")}
