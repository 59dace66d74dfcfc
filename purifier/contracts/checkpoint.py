"""Checkpoints: one safetensors file with the weights, and JSON metadata saying which plugin made it and how."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from ..atomic import atomic_path
from ..errors import CheckpointError, ConfigError
from ..foreign_code import Attempt, first_line
from ..specs import build, split_spec
from .purifier import Purifier, purifiers

FORMAT = 1
KINDS = {"format": int, "plugin": str, "config": dict}
CHECKPOINT_KEY = "purifier"
SHIPPED = {
    "demo": "fashion-robust.safetensors",
    "demo-plain": "fashion-vae.safetensors",
    "demo-certified": "fashion-certified.safetensors",
    "colour-32": "colour-32.safetensors",
}
"""Shipped purifiers. For Fashion-MNIST: a VAE adversarially trained with the shipped classifier, one trained on clean
images, and one that is trained for certificates. For 3x32x32: a VAE adversarially trained for CIFAR-10."""
KEPT_METADATA = ("recipe", "classifier", "seed", "data", "training", "metrics", "calibration")
"""What the metadata says about how a purifier was made; kept when it is saved again."""

_reading: ContextVar[Path | None] = ContextVar("reading", default=None)
"""The checkpoint that is being read: what it names comes from a stranger."""


def load(spec: str | Path) -> Purifier:
    """Load a purifier, in evaluation mode, on the CPU.

    Parameters
    ----------
    spec
        ``file.safetensors``, a plugin's name (``identity``), ``NAME:key=value,...``, or a shipped purifier: ``demo``,
        ``demo-plain``, ``demo-certified`` or ``colour-32``.

    Raises
    ------
    CheckpointError, SpecError, ConfigError, PluginError
        The file is missing, damaged or not a checkpoint, or the spec cannot be read.
    """
    purifier = _load(spec)
    purifier.provenance = {**purifier.provenance, "spec": str(spec)}
    return purifier


def _load(spec: str | Path) -> Purifier:
    text = str(spec)
    if text in SHIPPED:
        return _load_file(Path(str(files("purifier.assets") / SHIPPED[text])))
    path = checkpoint_path(spec)
    if path is not None:
        if (reader := _reading.get()) is not None:
            raise CheckpointError(
                f"{reader} names another file, {path}, but a checkpoint holds all its weights and names plugins only; "
                "recreate it",
                reader,
            )
        return _load_file(path)
    name, options = split_spec(text)
    cls, what = purifiers.get(name), f"purifier {name!r}"
    config: object = build(cls.Config, options, what=what)
    without_memory(cls, config, what)
    return make(cls, config, what).eval()


def checkpoint_path(spec: str | Path) -> Path | None:
    """The file that a PURIFIER spec names, whether or not it exists; None for shipped purifiers and plugin names."""
    if isinstance(spec, Path):
        return spec
    named = spec.endswith(".safetensors") and not re.match(r"[\w-]+:[\w-]+=", spec)
    return Path(spec) if spec not in SHIPPED and (named or _is_file(spec)) else None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a name, as a plugin with many options may be
        return False


def save(purifier: Purifier, path: str | Path, **metadata: Any) -> Path:
    """Write a purifier's checkpoint atomically.

    Parameters
    ----------
    metadata
        JSON-able facts about how it was made: ``recipe``, ``classifier``, ``seed``, ``data``, ``training``,
        ``metrics``, ``calibration``. Those of a loaded purifier are kept unless given here.
    """
    if not isinstance(purifier, Purifier):
        raise ConfigError(
            f"save: expected a purifier, got {type(purifier).__qualname__}; for a guard, save its .purifier"
        )
    kept = {key: value for key, value in purifier.provenance.items() if key in KEPT_METADATA}
    name = purifiers.name_of(type(purifier))
    description = {
        **kept,
        **metadata,
        "format": FORMAT,
        "plugin": name,
        "version": version_of(name),
        "config": dataclasses.asdict(purifier.config),
    }
    write_tensors(purifier.state_dict(), path, {CHECKPOINT_KEY: description})
    return Path(path)


def annotate(path: Path, out: Path, **facts: Any) -> None:
    """Write a copy of a checkpoint, atomically, with facts added to its metadata."""
    tensors, metadata = read_tensors(path)
    if not isinstance(metadata.get(CHECKPOINT_KEY), dict):
        raise _not_a_checkpoint(path)
    write_tensors(tensors, out, {**metadata, CHECKPOINT_KEY: {**metadata[CHECKPOINT_KEY], **facts}})


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically; each metadata value is stored as JSON."""
    detached = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        written = {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
        temporary.write_bytes(serialize(detached, written))  # safetensors' save_file makes files others cannot read


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and JSON metadata of a safetensors file. Nothing is unpickled.

    Raises
    ------
    CheckpointError
        The file is missing, unreadable, truncated, a pickle, or not safetensors.
    """
    return _parse(_content(Path(path)), Path(path))


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise CheckpointError(f"cannot read {path}: it is not a regular file; give the path of a file", path)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {path}; give the path of an existing file", path) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; give a file that you can read", path) from error


def _parse(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and JSON metadata in the content of a safetensors file."""
    head = content[:9]
    # A safetensors file starts with the header's length, which can look like a pickle; the header after it cannot.
    if not head.endswith(b"{") and head.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when read; expected safetensors; "
            "if you trust it, convert it with safetensors.torch.save_file(state_dict, ...)",
            path,
        )
    try:
        tensors = deserialize(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = {
            key: json.loads(value)
            for key, value in header.get("__metadata__", {}).items()
            if key.startswith(CHECKPOINT_KEY)
        }
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or not safetensors ({error}); copy it again or recreate it", path
        ) from error
    return tensors, metadata


def version_of(name: str) -> str:
    """``distribution version`` of a purifier plugin."""
    return next(f"{entry.distribution} {entry.version}".strip() for entry in purifiers.entries() if entry.name == name)


def _load_file(path: Path) -> Purifier:
    content = _content(path)  # read once: the file may be replaced meanwhile, and then has another hash
    digest = hashlib.sha256(content).hexdigest()
    tensors, metadata = _parse(content, path)
    del content
    description = metadata.get(CHECKPOINT_KEY)
    if not isinstance(description, dict) or not KINDS.keys() <= description.keys():
        raise _not_a_checkpoint(path)
    for key, kind in KINDS.items():
        if not isinstance(description[key], kind):
            raise CheckpointError(
                f"{path}: its metadata is damaged: {key!r}: expected {kind.__name__}, got {description[key]!r}; copy "
                "it again or recreate it",
                path,
            )
    if description["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: expected checkpoint format {FORMAT}, got {description['format']}; update purifier",
            path,
        )
    cls = purifiers.get(description["plugin"])
    token = _reading.set(path)
    try:
        what = f"purifier {description['plugin']!r}"
        config: object = build(cls.Config, description["config"], what=what)
        skeleton = without_memory(cls, config, what)
        if skeleton is not None:
            skeleton.load_state_dict(tensors, assign=True)
        purifier = make(cls, config, what)
        purifier.load_state_dict(tensors)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit plugin {description['plugin']!r} (made by {description.get('version')}): {error}",
            path,
        ) from error
    finally:
        _reading.reset(token)
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: weights {broken[0]!r} hold NaN or infinity; train it again", path)
    purifier.provenance = {
        **description,
        "file": path.name,
        "sha256": digest,
    }
    return purifier.eval()


def _not_a_checkpoint(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a purifier checkpoint: its metadata names no plugin; make one with `purifier train`", path
    )


def without_memory(cls: type[Purifier], config: Any, what: str) -> Purifier | None:
    """The purifier built on the meta device, so absurd sizes are found before memory is allocated.

    None if its class cannot be built there.
    """
    skeleton = None
    with Attempt() as attempt, torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        skeleton = cls(config)
    if attempt.error is not None and "overflow" in str(attempt.error).lower():
        raise _unbuildable(what, attempt.error) from attempt.error
    return skeleton


def make(cls: type[Purifier], config: Any, what: str) -> Purifier:
    """An untrained purifier; ``ConfigError``, naming it as ``what``, if this config cannot be built."""
    try:
        with torch.random.fork_rng(devices=[]):
            return cls(config)
    except (MemoryError, RuntimeError) as error:
        raise _unbuildable(what, error) from error


def _unbuildable(what: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{what} cannot be built with these options ({first_line(error)}); check its sizes")
