"""Read an ONNX file with its large weights straight into memory that ONNX Runtime can use, and parse only the rest."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from onnx import ModelProto, TensorProto, helper

from .weights import Array, SplitModel, can_be_apart, mark, names_of_weights

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Fields of ModelProto, GraphProto and TensorProto in onnx.proto."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf, https://protobuf.dev/programming-guides/encoding."""
LARGE = 4096
"""Bytes from which a tensor's data is not parsed."""
MAX_FIELDS = 200_000
"""Read here, one by one; a file with more is left to protobuf, which is faster at that."""
ALIGNMENT = 64
"""Of weights, in bytes: compiled loops may crash on a float at an odd address, where files store many."""
KEPT = {"name", "data_type", "dims", "data_location"}
"""Fields of a tensor, besides its data, that a mark stands for."""

Parts: TypeAlias = list[bytes]


class _Other(Exception):  # an answer, not an error
    """This file is damaged, or written in a way that is allowed but that no exporter uses."""


def read_split(path: Path) -> tuple[SplitModel, int]:
    """The model in a file and the file's size, each byte of a large weight copied once.

    The weights are in memory of their own, so that the file can be replaced or cut later. They are as large as their
    types and shapes say. What is not written as exporters do is parsed as a whole.

    Raises
    ------
    OSError, google.protobuf.message.DecodeError
        The file cannot be read, or is no ONNX model.
    """
    if sys.byteorder == "little":  # as weights are in files
        try:
            with path.open("rb") as file:
                return _Splitter(file).model()
        except _Other:
            pass
    content = path.read_bytes()
    return SplitModel(ModelProto.FromString(content)), len(content)


class _Splitter:
    """Walks through the fields of a file down to the data of the stored tensors."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.position, self.size = file, 0, os.fstat(file.fileno()).st_size
        # One block, because NumPy asks for large pages for it; what is not written takes no memory.
        self.memory = np.empty(self.size + ALIGNMENT * (self.size // LARGE + 2), np.uint8)
        self.free = -self.memory.ctypes.data % ALIGNMENT
        self.fields = 0
        self.data: dict[int, Array] = {}
        """By the positions of the tensors."""

    def model(self) -> tuple[SplitModel, int]:
        model = ModelProto.FromString(b"".join(self._model()))
        names, weights = names_of_weights(model), {}
        for place, data in self.data.items():
            tensor = model.graph.initializer[place]
            array = _as_array(tensor, data) if tensor.name in names else None
            if array is None:
                tensor.raw_data = data.tobytes()
            else:
                weights[tensor.name] = array
        return SplitModel(model, weights), self.size

    def _model(self) -> Parts:
        parts: Parts = []
        graphs = 0
        while self.position < self.size:
            key, number, kind = self._key()
            if (number, kind) == (GRAPH, BYTES):
                graphs += 1
                _, length = self._length(self.size)
                inner = self._graph(self.position + length)
                parts += (key, _varint(sum(map(len, inner))), *inner)
            else:
                parts += (key, *self._value(kind, self.size))
        if graphs != 1:  # several would be merged
            raise _Other
        return parts

    def _graph(self, end: int) -> Parts:
        parts: Parts = []
        count = 0
        while self.position < end:
            key, number, kind = self._key()
            if (number, kind) != (INITIALIZER, BYTES):
                parts += (key, *self._value(kind, end))
                continue
            text, length = self._length(end)
            if length < LARGE:
                parts += (key, text, self._read(length))
            else:
                inner = self._tensor(self.position + length, count)
                parts += (key, _varint(sum(map(len, inner))), *inner)
            count += 1
        if self.position != end:
            raise _Other
        return parts

    def _tensor(self, end: int, place: int) -> Parts:
        parts: Parts = []
        while self.position < end:
            key, number, kind = self._key()
            if (number, kind) != (RAW_DATA, BYTES):
                parts += (key, *self._value(kind, end))
                continue
            text, length = self._length(end)
            if place in self.data:  # the last one counts
                raise _Other
            if length < LARGE:
                parts += (key, text, self._read(length))
            else:
                self.data[place] = self._into_memory(length)
        if self.position != end:
            raise _Other
        return parts

    def _value(self, kind: int, end: int) -> Parts:
        """A field's value as it is in the file."""
        if kind == VARINT:
            return [self._number()[0]]
        if kind in (FIXED32, FIXED64):
            return [self._read(4 if kind == FIXED32 else 8)]
        if kind != BYTES:
            raise _Other
        text, length = self._length(end)
        return [text, self._read(length)]

    def _key(self) -> tuple[bytes, int, int]:
        self.fields += 1
        if self.fields > MAX_FIELDS:
            raise _Other
        text, number = self._number()
        return text, number >> 3, number & 7

    def _length(self, end: int) -> tuple[bytes, int]:
        text, length = self._number()
        if length > end - self.position:
            raise _Other
        return text, length

    def _number(self) -> tuple[bytes, int]:
        """A varint, as it is written and what it means."""
        text, value = b"", 0
        while len(text) < 10:
            byte = self._read(1)
            value |= (byte[0] & 0x7F) << 7 * len(text)
            text += byte
            if byte[0] < 0x80:
                return text, value
        raise _Other

    def _read(self, length: int) -> bytes:
        found = self.file.read(length)
        if len(found) != length:
            raise _Other
        self.position += length
        return found

    def _into_memory(self, length: int) -> Array:
        place = self.memory[self.free : self.free + length]
        view, done = place.data, 0
        while done < length:  # a buffered file may give less than it is asked for
            count = self.file.readinto(view[done:])  # type: ignore[attr-defined]  # IO lacks it, files have it
            if not count:
                raise _Other
            done += count
        self.position += length
        self.free += -(-length // ALIGNMENT) * ALIGNMENT
        return place


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _as_array(tensor: TensorProto, data: Array) -> Array | None:
    """The data of a tensor in its type and shape; None unless a mark can stand for it."""
    fields = {field.name for field, _ in tensor.ListFields()}
    if not can_be_apart(tensor) or not fields <= KEPT or tensor.data_location != TensorProto.DEFAULT:
        return None
    array = data.view(np.uint8)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if min(tensor.dims) < 0 or array.nbytes != dtype.itemsize * int(np.prod(tensor.dims, dtype=object)):
        return None
    array = array.view(dtype).reshape(tensor.dims)
    array.flags.writeable = False
    return array


def put_marks(model: SplitModel) -> None:
    """Mark, in place, the weights that are apart, once the rest has been checked."""
    for tensor in model.bare.graph.initializer:
        if tensor.name in model.weights:
            tensor.CopyFrom(mark(tensor))
