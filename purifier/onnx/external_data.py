"""Read the weights that an ONNX file keeps in files beside it, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnx import TensorProto, helper

from ..errors import ClassifierError
from .limits import MAX_BYTES

PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Bits of types that share a byte, by name, because older versions of onnx do not have them all."""


def read_external_data(tensors: Sequence[TensorProto], path: Path, size: int) -> None:
    """Put the data of ``tensors``, which is in files beside ``path``, into the tensors.

    Parameters
    ----------
    size
        Bytes of the model without this data.

    Raises
    ------
    ClassifierError
        A file is missing, too short or outside the folder of ``path`` (by ``..``, an absolute path or a symbolic
        link), or there is more than ``MAX_BYTES`` in all. Nothing is read before everything has been checked.
    """
    folder = path.parent.resolve()
    parts = [_Part(tensor, path, folder) for tensor in tensors]
    total = size + sum(part.length for part in parts)
    if total > MAX_BYTES:
        raise ClassifierError(
            f"{path} and its external data are {total / 1e9:.1f} GB, the limit is {MAX_BYTES / 1e9:.1f} GB; guard the "
            "torch module, or a half-precision copy",
            path,
        )
    for part in parts:
        part.read()


class _Part:
    """Where one tensor's data is, after checking that it may be read."""

    def __init__(self, tensor: TensorProto, path: Path, folder: Path) -> None:
        self.tensor, self.path = tensor, path
        entries = {entry.key: entry.value for entry in tensor.external_data}
        self.file = self._inside(entries.get("location", ""), folder)
        try:
            self.offset, self.length = int(entries.get("offset", 0)), _bytes_of(tensor)
            given = int(entries.get("length", self.length))
        except ValueError as error:
            raise self._error(f"whose place is damaged ({error})") from error
        if given != self.length or self.offset < 0:
            raise self._error(f"expected {self.length} bytes for its shape {tuple(tensor.dims)}, got {given}")
        held = self.file.stat().st_size
        if self.offset + self.length > held:
            raise self._error(f"whose file has {held} bytes, expected {self.offset + self.length} or more")

    def read(self) -> None:
        try:
            with self.file.open("rb") as opened:
                opened.seek(self.offset)
                data = opened.read(self.length)
        except OSError as error:
            raise self._error(f"which cannot be read ({error.strerror or error})") from error
        self.tensor.raw_data = data
        self.tensor.data_location = TensorProto.DEFAULT
        del self.tensor.external_data[:]

    def _inside(self, location: str, folder: Path) -> Path:
        plain = PurePosixPath(location.replace("\\", "/"))
        absolute = plain.is_absolute() or PureWindowsPath(location).drive
        if not location or "\0" in location or absolute or ".." in plain.parts:
            raise self._error("expected a file in the same folder")
        try:
            found = (folder / plain).resolve()
            if not found.is_relative_to(folder):
                raise self._error("a symbolic link to another folder; put the file itself beside the model")
            if not found.is_file():
                raise self._error("but there is no such file; copy both files")
        except (OSError, RuntimeError) as error:  # a name that is too long, or a loop of links
            raise self._error(f"which cannot be read ({error})") from error
        return found

    def _error(self, problem: str) -> ClassifierError:
        location = next((entry.value for entry in self.tensor.external_data if entry.key == "location"), "")
        return ClassifierError(
            f"{self.path} keeps {self.tensor.name!r} in {location!r}: {problem}; or save it in one file with "
            "onnx.save(onnx.load(path), new_path)",
            self.path,
        )


def _bytes_of(tensor: TensorProto) -> int:
    kinds, count = TensorProto.DataType, math.prod(int(size) for size in tensor.dims)
    if tensor.data_type not in kinds.values() or min(tensor.dims, default=0) < 0:
        raise ValueError(f"type {tensor.data_type}, shape {tuple(tensor.dims)}")
    name = kinds.Name(tensor.data_type)
    if name in PACKED:
        return math.ceil(count * PACKED[name] / 8)
    if name in ("UNDEFINED", "STRING"):
        raise ValueError(f"type {name}, which has no fixed size")
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
