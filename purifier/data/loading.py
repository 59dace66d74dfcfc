"""Load labelled images in pixel space from DATA specs."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError, SpecError
from .images import SUFFIXES, ImageData, ImageFiles
from .named import CLASS_NAMES, load_arrays
from .specs import check_within, read_split, unknown_data

DEMO_IMAGES = "demo-images.npz"
_BROKEN_ARRAY = (ValueError, EOFError, MemoryError, RuntimeError, SyntaxError, tokenize.TokenError)
_BROKEN_ZIP = (*_BROKEN_ARRAY, OSError, zipfile.BadZipFile, zlib.error)


def load_data(spec: str, *, root: str | Path | None = None) -> ImageData:
    """Load the data set that a DATA spec names.

    Parameters
    ----------
    spec
        ``NAME[:split][:which]`` for fashion-mnist, mnist and cifar10 (split ``test`` by default); ``folder:DIR``
        with one folder of images per class; ``npz:FILE`` with arrays ``images`` and ``labels``; ``demo[:which]``,
        the shipped images. ``which`` is a count (that many images from the start) or ``start-stop`` as in a
        Python slice: ``fashion-mnist:train:50000-60000`` is the last sixth of the training images.
    root
        Folder to search first for named data sets, and to download them to.

    Raises
    ------
    SpecError
        The spec cannot be read.
    DataError
        The data is missing, empty or damaged, or not images in [0, 1].
    """
    try:
        return _load(spec, root)
    except OSError as error:  # such as a folder without permission, or a name that is too long
        path = error.filename or spec
        raise DataError(f"cannot read {path}: {error.strerror or error}; give data that you can read", path) from error


def _load(spec: str, root: str | Path | None) -> ImageData:
    kind, _, rest = spec.partition(":")
    if kind in ("folder", "npz"):
        if not rest:
            raise SpecError(f"no path in DATA {spec!r}: expected folder:DIR or npz:FILE", spec)
        return _load_folder(spec, Path(rest)) if kind == "folder" else _load_npz(spec, Path(rest))
    if kind == "demo":
        _, wanted = read_split(spec, rest, splits=())
        return _load_npz(spec, Path(str(files("purifier.assets") / DEMO_IMAGES)), CLASS_NAMES["fashion-mnist"], wanted)
    if kind not in CLASS_NAMES:
        raise unknown_data(spec, kind)
    split, wanted = read_split(spec, rest, splits=("train", "test"))
    images, labels = load_arrays(kind, train=split == "train", root=root)
    return _from_arrays(spec, images, labels, CLASS_NAMES[kind], wanted)


def _from_arrays(
    spec: str,
    images: NDArray[np.generic],
    labels: NDArray[np.generic],
    classes: Sequence[str],
    wanted: range | None,
) -> ImageData:
    images = _channels_first(spec, images)
    if wanted is not None:
        check_within(spec, wanted, len(images))
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{spec}: expected images of uint8, or floats in [0, 1], got {images.dtype}", spec)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{spec}: expected labels (N,) of integers, got {labels.dtype}", spec)
    if wanted is not None and labels.shape == images.shape[:1]:  # otherwise ImageData raises the error
        images, labels = images[wanted.start : wanted.stop], labels[wanted.start : wanted.stop]
    kind = np.uint8 if images.dtype == np.uint8 else np.float32
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and ImageData checks the range
        images = np.array(images, dtype=kind, order="C")
    return ImageData(
        spec,
        torch.from_numpy(images),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
        classes,
    )


def _channels_first(spec: str, images: NDArray[np.generic]) -> NDArray[np.generic]:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first != last:
            return images if first else images.transpose(0, 3, 1, 2)
    raise DataError(
        f"{spec}: expected images (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, "
        f"got {images.shape}" + ("; cannot tell which side is the channels" if images.ndim == 4 and first else ""),
        spec,
    )


def _load_npz(spec: str, path: Path, classes: Sequence[str] = (), wanted: range | None = None) -> ImageData:
    if not path.is_file():
        raise DataError(f"no file {path}; expected an .npz file with arrays 'images' and 'labels'", path)
    try:
        with path.open("rb") as opened:
            stored = np.load(opened, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError("it is a single .npy array")
            arrays = {key: stored[key] for key in ("images", "labels") if key in stored}
            if any(isinstance(array, bytes) for array in arrays.values()):  # numpy returns bytes for a broken .npy
                raise ValueError("an array in it is damaged")
    except _BROKEN_ZIP as error:
        raise DataError(
            f"cannot read {path} ({error}); expected an .npz file with plain arrays 'images' and 'labels', "
            "such as np.savez_compressed writes",
            path,
        ) from error
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise DataError(f"{path} has no array {missing[0]!r}; expected 'images' and 'labels'", path)
    return _from_arrays(spec, arrays["images"], arrays["labels"], classes, wanted)


def _load_folder(spec: str, folder: Path) -> ImageData:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; expected one that holds a folder of images per class", folder)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} holds no folders; expected one per class, with the images inside", folder)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted(path for path in _files(folder / name) if path.suffix.lower() in SUFFIXES)
        if not inside:
            raise DataError(f"{folder / name} holds no images; expected files in {' '.join(SUFFIXES)}", folder / name)
        paths += inside
        labels += [label] * len(inside)
    return ImageData(spec, ImageFiles(paths), torch.tensor(labels), classes)


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:  # by default os.walk, like Path.rglob, skips folders it cannot read
        raise error

    for place, _, names in os.walk(folder, onerror=fail):
        yield from (Path(place, name) for name in names)
