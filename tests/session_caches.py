"""Work that many tests repeat, done once per process: read data and metadata files, export a purifier.

A cache keeps what the real function returned for the same input, so the first call always does the work.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Hashable
from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto

import purifier.contracts.registry
import purifier.data.named
import purifier.onnx.front_cache
from purifier.contracts.purifier import Purifier


def install(patch: pytest.MonkeyPatch) -> None:
    """Put all caches in place."""
    patch.setattr(purifier.data.named, "_read_idx", _by_version(purifier.data.named._read_idx))
    patch.setattr(purifier.contracts.registry, "entry_points", _by_path(purifier.contracts.registry.entry_points))
    patch.setattr(purifier.onnx.front_cache, "purifier_graph", _by_content(purifier.onnx.front_cache.purifier_graph))
    _read_torchs_operators_once(patch)


def _by_version(read: Callable[[Path, int], Any]) -> Callable[[Path, int], Any]:
    """Read a file again only if it has changed."""

    @functools.cache
    def cached(path: Path, dimensions: int, version: tuple[int, int]) -> Any:
        return read(path, dimensions)

    def read_idx(path: Path, dimensions: int) -> Any:
        status = path.stat()
        return cached(path, dimensions, (status.st_mtime_ns, status.st_size))

    return read_idx


def _by_path(find: Callable[..., EntryPoints]) -> Callable[..., EntryPoints]:
    """Look for distributions again only if ``sys.path`` has changed."""

    @functools.cache
    def cached(path: tuple[str, ...], options: tuple[tuple[str, str], ...]) -> EntryPoints:
        return find(**dict(options))

    return lambda **options: cached(tuple(sys.path), tuple(options.items()))


def _by_content(export: Callable[..., ModelProto]) -> Callable[..., ModelProto]:
    """Export a purifier again only if its class, its options, one of its tensors or an argument is another."""
    made: dict[Hashable, bytes] = {}

    def purifier_graph(exported: Purifier, *arguments: object, **options: object) -> ModelProto:
        named = [*exported.named_parameters(), *exported.named_buffers()]
        tensors = [(name, tensor.dtype, tensor.detach().cpu().float().numpy()) for name, tensor in named]
        key = (
            type(exported),
            repr((exported.config, arguments, sorted(options.items()))),
            tuple((name, kind, values.shape, values.tobytes()) for name, kind, values in tensors),
        )
        if key not in made:
            made[key] = export(exported, *arguments, **options).SerializeToString()
        return ModelProto.FromString(made[key])

    return purifier_graph


def _read_torchs_operators_once(patch: pytest.MonkeyPatch) -> None:
    """torch reads the source of 500 functions again for each export, which takes half of its time.

    Its registry is private: with a torch that has it elsewhere, tests are only slower.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
