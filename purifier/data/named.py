"""Named data sets: where to find them and how to read their files."""

from __future__ import annotations

import gzip
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "mnist": tuple("0123456789"),
}
MOST_BYTES = 64 * 2**20
"""Of an idx file once decompressed; the training images of Fashion-MNIST are 47 million."""
Arrays = tuple[NDArray[np.generic], NDArray[np.generic]]


def load_arrays(name: str, *, train: bool, root: str | Path | None) -> Arrays:
    """Images, uint8 (N, H, W) or (N, H, W, 3), and labels (N,) of a data set in ``CLASS_NAMES``.

    Fashion-MNIST is searched for in ``root``, then in $PURIFIER_DATA, then where Debian puts it. Everything else is up
    to torchvision, which searches ``root``, $PURIFIER_DATA or ~/.cache/purifier, and downloads to it.

    Raises
    ------
    DataError
        The files are damaged, or missing and cannot be downloaded.
    """
    found = _find_fashion_mnist(train, root) if name == "fashion-mnist" else None
    return found or _torchvision(name, train, root)


def _folders(root: str | Path | None) -> list[Path]:
    return [Path(place) for place in (root, os.environ.get("PURIFIER_DATA")) if place]


def _find_fashion_mnist(train: bool, root: str | Path | None) -> Arrays | None:
    stem = "train" if train else "t10k"
    for folder in (*_folders(root), SYSTEM_FASHION_MNIST):
        for place in (folder, folder / "FashionMNIST" / "raw"):
            images, labels = (
                next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None)
                for name in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
            )
            if images and labels:
                return _read_idx(images, 3), _read_idx(labels, 1)
    return None


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes: 0, 0, 8, the number of dimensions, their big-endian sizes, the data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)  # a few megabytes can be compressed gigabytes
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({error}); copy or install it again", path) from error
    if len(raw) > MOST_BYTES:
        raise DataError(
            f"{path} holds more than {MOST_BYTES:,} bytes, which no such data set does; install it again", path
        )
    start = 4 + 4 * dimensions
    if raw[:4] != bytes((0, 0, 8, dimensions)) or len(raw) < start:
        raise DataError(f"{path} is not an idx file of bytes in {dimensions} dimensions; install it again", path)
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    wanted = start + int(np.prod(shape, dtype=object))
    if len(raw) != wanted:
        raise DataError(f"{path}: expected {wanted} bytes for {shape}, got {len(raw)}; install it again", path)
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _torchvision(name: str, train: bool, root: str | Path | None) -> Arrays:
    from torchvision import datasets  # takes seconds to import, and is rarely needed

    makers = {"cifar10": datasets.CIFAR10, "fashion-mnist": datasets.FashionMNIST, "mnist": datasets.MNIST}
    target = next(iter(_folders(root)), Path.home() / ".cache" / "purifier")
    try:
        # CIFAR-10's files are pickles; torchvision reads them only if their MD5 sums match the published ones.
        found = makers[name](str(target), train=train, download=True)
    except (OSError, RuntimeError, ValueError, EOFError, AssertionError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # torchvision's messages span lines
        debian = "apt-get install dataset-fashion-mnist, or " if name == "fashion-mnist" else ""
        raise DataError(
            f"{name} is not in {target} and cannot be downloaded to it ({reason}); {debian}give the folder "
            "that has it with --root (root= in Python) or $PURIFIER_DATA",
            target,
        ) from error
    return np.asarray(found.data), np.asarray(found.targets)
