"""The metadata of a guarded ONNX file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json

import onnx
from onnx import ModelProto

from ..contracts.purifier import Purifier, purifiers
from ..errors import PluginError
from ..rejection.calibration import calibration_of
from ..rejection.policy import Rejection

METADATA_FORMAT = 1


def purifier_metadata(purifier: Purifier, rejection: Rejection | None = None, noise: bool = False) -> dict[str, str]:
    """A guarded file's metadata about its purifier: plugin, configuration, checkpoint, calibration and noise."""
    config = json.dumps(dataclasses.asdict(purifier.config), sort_keys=True, separators=(",", ":"))
    try:
        plugin = purifiers.name_of(type(purifier))
    except PluginError:  # a class that is not registered has no plugin name
        plugin = type(purifier).__qualname__
    rejection, calibration = rejection or Rejection(), calibration_of(purifier)
    entries = {
        "format": METADATA_FORMAT,
        "version": _version(),
        "plugin": plugin,
        "config": config,
        "config_hash": hashlib.sha256(config.encode()).hexdigest(),
        "checkpoint": purifier.provenance.get("file"),
        "checkpoint_sha256": purifier.provenance.get("sha256"),
        "threshold": None if calibration is None else calibration.threshold,
        "fpr": None if calibration is None else calibration.fpr,
        "on_reject": rejection.on_reject if rejection.active else None,
        "abstain": rejection.abstain,
        "on_bad_pixels": rejection.on_bad_pixels,
        "noise": "the purifier's draw()" if noise else None,
    }
    return {f"purifier.{key}": str(value) for key, value in entries.items() if value is not None}


@functools.cache
def _version() -> str:
    return importlib.metadata.version("adversarial-purifier")


def add_metadata(model: ModelProto, entries: dict[str, str]) -> None:
    """Set metadata of a model in place; its other entries stay."""
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **entries})
