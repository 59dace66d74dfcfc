"""DATA specs -> labelled images in pixel space."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .data_specs import check_within, read_split, unknown_data
from .errors import DataError, SpecError
from .named_data import CLASSES, load_arrays

DEMO_IMAGES = "demo-images.npz"
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_BROKEN_ARRAY = (ValueError, EOFError, MemoryError, RuntimeError, SyntaxError, tokenize.TokenError)
_BROKEN_ZIP = (*_BROKEN_ARRAY, OSError, zipfile.BadZipFile, zlib.error)


class ImageFiles:
    """Image files of one size, decoded when asked for: ``files[positions]`` is uint8, (n, C, H, W).

    All are converted to ``mode``; unless that is given, to grey if all are grey and to colour otherwise.
    """

    def __init__(self, paths: Sequence[Path], mode: Literal["L", "RGB"] | None = None) -> None:
        self.paths = tuple(paths)
        heads = [_head(path) for path in self.paths]
        for path, (size, _) in zip(self.paths, heads, strict=True):
            if size != heads[0][0]:
                raise DataError(
                    f"expected images of one size, got {self.paths[0]} of {_by(heads[0][0])} and {path} of "
                    f"{_by(size)} (width x height); resize them",
                    path,
                )
        self.mode = mode or ("L" if all(stored == "L" for _, stored in heads) else "RGB")
        (width, height) = heads[0][0]
        self.shape = (len(self.paths), 1 if self.mode == "L" else 3, height, width)

    def __getitem__(self, positions: Tensor) -> Tensor:
        out = torch.empty((len(positions), *self.shape[1:]), dtype=torch.uint8)
        for row, position in zip(out, positions.tolist(), strict=True):
            path = self.paths[position]
            try:
                with Image.open(path) as image:
                    decoded = np.array(image.convert(self.mode))
            except (OSError, ValueError, SyntaxError) as error:
                raise _unreadable(path, error) from error
            row.copy_(torch.from_numpy(decoded).view(*self.shape[2:], -1).permute(2, 0, 1))
        return out


class ImageData:
    """Labelled images, handed out as pixels a batch at a time.

    Parameters
    ----------
    name
        The DATA spec they come from.
    images
        (N, C, H, W) with 1 or 3 channels: uint8, floats in [0, 1], or files.
    labels
        (N,) integers, none negative.
    classes
        What the labels mean; may be empty.

    Raises
    ------
    DataError
        No images, a wrong shape, type or range, or labels that do not fit.
    """

    def __init__(self, name: str, images: Tensor | ImageFiles, labels: Tensor, classes: Sequence[str] = ()) -> None:
        self.name = name
        self.classes = tuple(classes)
        if isinstance(images, Tensor):
            images = _checked_images(images, name)
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(
                f"{name}: expected labels (N,) of integers, got {tuple(labels.shape)} of {labels.dtype}", name
            )
        if len(labels) != images.shape[0]:
            raise DataError(f"{name}: expected a label for each of {images.shape[0]} images, got {len(labels)}", name)
        self.labels = labels.long()
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or (self.classes and high >= len(self.classes)):
            wanted = f"0 to {len(self.classes) - 1}" if self.classes else "0 or more"
            raise DataError(f"{name}: expected labels of {wanted}, got {low} to {high}", name)
        self.shape: tuple[int, int, int] = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        self._images = images

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images at some positions: pixels (n, C, H, W) float32 in [0, 1], and labels (n,) int64."""
        positions = torch.as_tensor(indices, dtype=torch.int64)
        images = self._images[positions]
        return images.float() / 255 if images.dtype == torch.uint8 else images, self.labels[positions]

    def spread(self, count: int) -> list[int]:
        """Positions of at most ``count`` images, evenly over all: data is often sorted by class."""
        positions: list[int] = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        return positions


def load_data(spec: str, *, root: str | Path | None = None) -> ImageData:
    """The data set a DATA spec names.

    Parameters
    ----------
    spec
        ``NAME[:split][:which]`` for fashion-mnist, mnist and cifar10 (split ``test`` unless given); ``folder:DIR``
        with a folder of images for each class; ``npz:FILE`` with arrays ``images`` and ``labels``;
        ``demo[:which]``, the shipped images. ``which`` is a count, the first so many, or ``start-stop`` as in
        a Python slice: ``fashion-mnist:train:50000-60000`` is the last sixth of the training images.
    root
        Where named sets are looked for first, and downloaded to.

    Raises
    ------
    SpecError
        The spec cannot be read.
    DataError
        The data is missing, empty, damaged or not images in [0, 1].
    """
    try:
        return _load(spec, root)
    except OSError as error:  # a folder that may not be searched, a name too long
        path = error.filename or spec
        raise DataError(f"cannot read {path}: {error.strerror or error}; give data that you may read", path) from error


def _load(spec: str, root: str | Path | None) -> ImageData:
    kind, _, rest = spec.partition(":")
    if kind in ("folder", "npz"):
        if not rest:
            raise SpecError(f"no path in DATA {spec!r}: expected folder:DIR or npz:FILE", spec)
        return _load_folder(spec, Path(rest)) if kind == "folder" else _load_npz(spec, Path(rest))
    if kind == "demo":
        _, wanted = read_split(spec, rest, splits=())
        return _load_npz(spec, Path(str(files("purifier.assets") / DEMO_IMAGES)), CLASSES["fashion-mnist"], wanted)
    if kind not in CLASSES:
        raise unknown_data(spec, kind)
    split, wanted = read_split(spec, rest, splits=("train", "test"))
    images, labels = load_arrays(kind, train=split == "train", root=root)
    return _from_arrays(spec, images, labels, CLASSES[kind], wanted)


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
    if wanted is not None and labels.shape == images.shape[:1]:  # if not, the constructor says so
        images, labels = images[wanted.start : wanted.stop], labels[wanted.start : wanted.stop]
    kind = np.uint8 if images.dtype == np.uint8 else np.float32
    with np.errstate(over="ignore"):  # beyond float32 they become infinite, and the range is refused
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
        f"got {images.shape}" + ("; which side is the channels?" if images.ndim == 4 and first else ""),
        spec,
    )


def _checked_images(images: Tensor, name: str) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"{name}: expected images (N, 1 or 3, H, W), got {tuple(images.shape)}", name)
    if images.numel() == 0:
        raise DataError(f"{name}: no images, got {tuple(images.shape)}; expected one at least", name)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{name}: expected images of uint8, or floats in [0, 1], got {images.dtype}", name)
    low, high = (value.item() for value in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # so that NaN fails too
        raise DataError(
            f"{name}: expected float images in [0, 1], got [{low:.4g}, {high:.4g}]; undo any normalisation, "
            "divide 0-255 images by 255 or store them as uint8, and mend any NaN",
            name,
        )
    return images.float()


def _load_npz(spec: str, path: Path, classes: Sequence[str] = (), wanted: range | None = None) -> ImageData:
    if not path.is_file():
        raise DataError(f"no file {path}; expected an .npz file with arrays 'images' and 'labels'", path)
    try:
        with path.open("rb") as opened:
            stored = np.load(opened, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError("it is a single .npy array")
            arrays = {key: stored[key] for key in ("images", "labels") if key in stored}
            if any(isinstance(array, bytes) for array in arrays.values()):  # so numpy gives what is no .npy
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
        raise DataError(f"no folder {folder}; expected one holding a folder of images for each class", folder)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} holds no folders; expected one a class, with the images inside", folder)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted(path for path in _files(folder / name) if path.suffix.lower() in SUFFIXES)
        if not inside:
            raise DataError(f"{folder / name} holds no images; expected {' '.join(SUFFIXES)}", folder / name)
        paths += inside
        labels += [label] * len(inside)
    return ImageData(spec, ImageFiles(paths), torch.tensor(labels), classes)


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:  # os.walk and Path.rglob both pass over what they cannot read
        raise error

    for place, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(place, name) for name in names)


def _head(path: Path) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(path) as image:
            size, mode = image.size, image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if mode.startswith(("I", "F")):  # PIL would clip these to 8 bits, not scale them
        raise DataError(f"{path} has mode {mode}; expected 8-bit images: convert it", path)
    return size, mode


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"cannot read image {path} ({error}); mend or remove it", path)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
