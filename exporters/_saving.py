"""Write an ONNX model to a file, with its weights in a second file beside it if they are large."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import set_external_data

from purifier.atomic import atomic_path
from purifier.errors import ExportError
from purifier.onnx.graphs import all_graphs

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights from which they are in a file of their own. Protobuf's limit is 2 GB for the whole model."""
LARGE = 1024
"""Bytes of the smallest tensor that goes there."""
ALIGNMENT = 4096
"""Of each tensor in that file, so that readers can map it into memory."""
DIGITS, BLOCK = 16, 1 << 20
"""Of the hash in the name of that file; bytes that are read at once."""


@contextmanager
def saved(model: ModelProto, path: Path, name: Path) -> Iterator[tuple[Path, Path | None]]:
    """Write ``model``, and yield its file for checks, and that of its weights if it has one.

    After the block the file is at ``path``; if the block fails, nothing is. Weights above ``EXTERNAL_ABOVE`` bytes are
    in ``NAME.onnx.HASH.data`` beside it. That name says what is inside, so that an older file at ``path`` keeps its
    own weights until it is replaced; then they are removed. The model is the same afterwards. Errors call the
    file ``name``.

    Raises
    ------
    ExportError
        onnx's checker rejects the model.
    OutputError
        A file cannot be written.
    """
    tensors = [tensor for graph in all_graphs(model.graph) for tensor in graph.initializer]
    if sum(len(tensor.raw_data) for tensor in tensors) <= EXTERNAL_ABOVE:
        with atomic_path(path) as file:
            file.write_bytes(model.SerializeToString())
            _check_model(file, name)
            yield file, None
        _remove_old_weights(path, None)
        return
    large = [tensor for tensor in tensors if len(tensor.raw_data) >= LARGE]
    weights, existed = _write_weights(large, path)
    try:
        with atomic_path(path) as file:
            with _elsewhere(large, weights.name):
                file.write_bytes(model.SerializeToString())
            _check_model(file, name)
            yield file, weights
    except BaseException:
        if not existed:
            with suppress(OSError):
                weights.unlink()
        raise
    _remove_old_weights(path, weights)


def _remove_old_weights(path: Path, kept: Path | None) -> None:
    """Remove the weights of earlier exports to ``path``."""
    for file in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * DIGITS}.data"):
        if file != kept:
            with suppress(OSError):
                file.unlink()


def size_of(file: Path, weights: Path | None) -> int:
    """Bytes of a file and of that of its weights."""
    return file.stat().st_size + (0 if weights is None else weights.stat().st_size)


def digest(file: Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def _check_model(file: Path, name: Path) -> None:
    """Raise ``ExportError`` unless onnx's checker accepts the file."""
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        cause = str(error).replace(file.name, name.name)
        raise ExportError(f"{name}: the guarded graph fails onnx's checker: {cause}", name) from error


def _write_weights(tensors: list[TensorProto], path: Path) -> tuple[Path, bool]:
    """The file with the tensors' data one after the other, and whether it was there before."""
    content = hashlib.sha256()
    for block in _blocks(tensors):
        content.update(block)
    file = path.with_name(f"{path.name}.{content.hexdigest()[:DIGITS]}.data")
    existed = file.exists()
    with atomic_path(file) as temporary, temporary.open("wb") as opened:
        opened.writelines(_blocks(tensors))
    return file, existed


def _blocks(tensors: list[TensorProto]) -> Iterator[bytes]:
    """The content of the file of weights."""
    offset = 0
    for tensor in tensors:
        gap, data = -offset % ALIGNMENT, tensor.raw_data
        yield b"\0" * gap
        yield data
        offset += gap + len(data)


@contextmanager
def _elsewhere(tensors: list[TensorProto], name: str) -> Iterator[None]:
    """Say, for the duration of a block, that the tensors' data is in the file ``name``."""
    held, offset = [], 0
    try:
        for tensor in tensors:
            data = tensor.raw_data
            held.append(data)
            offset += -offset % ALIGNMENT
            set_external_data(tensor, name, offset, len(data))
            tensor.ClearField("raw_data")
            offset += len(data)
        yield
    finally:
        for tensor, data in zip(tensors, held, strict=False):
            tensor.raw_data = data
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
