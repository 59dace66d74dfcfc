"""Arrays in .npz files from anywhere: their headers are checked before anything is decompressed."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import ConfigError, DataError

MOST_BYTES = 512 * 2**20
"""How much compressed arrays may hold unless the caller allows more."""
HEADER_BYTES = 16_384
"""How much of an array is decompressed to read its header; numpy reads headers of at most 10,000 bytes."""
_BROKEN_ARRAY = (ValueError, EOFError, MemoryError, RuntimeError, SyntaxError, tokenize.TokenError)
_BROKEN_ZIP = (*_BROKEN_ARRAY, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError)
WANTED = ("images", "labels")


def read_npz(path: Path, max_bytes: int | None = None) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    """The arrays ``images`` and, if it is there, ``labels`` of an .npz file.

    Parameters
    ----------
    path
        The file. A few kilobytes can be compressed gigabytes, so sizes are read from the arrays' headers first.
    max_bytes
        How much compressed arrays may hold, ``MOST_BYTES`` by default. Arrays that are not compressed may be of any
        size, because they are as large as the file.

    Raises
    ------
    DataError
        The file is missing, damaged, larger than allowed, or has no ``images``. Pickled objects are never read.
    ConfigError
        ``max_bytes`` is not a positive whole number.
    """
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 1):
        raise ConfigError(f"max_bytes: expected a number of bytes of at least 1, got {max_bytes!r}")
    if not path.is_file():
        raise DataError(f"no file {path}; expected an .npz file with arrays 'images' and 'labels'", path)
    try:
        with path.open("rb") as opened:
            _check_size(opened, path, MOST_BYTES if max_bytes is None else max_bytes)
            opened.seek(0)
            stored = np.load(opened, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError("it is a single .npy array")
            arrays, names = {key: stored[key] for key in WANTED if key in stored}, list(stored)
            if any(isinstance(array, bytes) for array in arrays.values()):  # numpy returns bytes for a broken .npy
                raise ValueError("an array in it is damaged")
    except _BROKEN_ZIP as error:
        raise DataError(
            f"cannot read {path} ({error}); expected an .npz file with plain arrays 'images' and 'labels', "
            "such as np.savez_compressed writes",
            path,
        ) from error
    if "images" not in arrays:
        raise DataError(f"{path} has no array 'images'; expected 'images' and, where there are any, 'labels'", path)
    if "labels" not in arrays and len(names) > 1:  # labels under another name are more likely than none
        raise DataError(
            f"{path} has no array 'labels', but {', '.join(map(repr, names))}; expected 'images' and 'labels', or "
            "'images' alone if they have no labels",
            path,
        )
    return arrays["images"], arrays.get("labels")


def _check_size(opened: BinaryIO, path: Path, most: int) -> None:
    """Raise ``DataError`` if the compressed arrays hold more than ``most`` bytes."""
    if not zipfile.is_zipfile(opened):
        return  # numpy says what it is
    held = 0
    with zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            if member.filename.removesuffix(".npy") not in WANTED:
                continue
            if member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size:
                continue
            # Either number can lie; numpy makes an array of the header's size, and zipfile stops at the directory's.
            held += max(member.file_size, _header_bytes(archive, member))
    if held > most:
        raise DataError(
            f"{path}: its arrays hold {held:,} bytes once decompressed, from a file of {path.stat().st_size:,}; "
            f"expected at most {most:,}. If you trust the file, allow more with max_bytes={held} "
            f"(--max-bytes {held})",
            path,
        )


def _header_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """The size of an array by its own header."""
    with archive.open(member) as compressed:
        head = io.BytesIO(compressed.read(HEADER_BYTES))
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(head))
    if read is None:
        return 0  # numpy says what it is
    shape, _, dtype = read(head)
    return int(math.prod(shape) * dtype.itemsize)
