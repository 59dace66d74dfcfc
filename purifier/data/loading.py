"""Load images in pixel space from DATA specs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .archives import read_npz
from .files import ImageFiles
from .folders import find_images, in_turn, read_classes
from .framing import read_framing
from .images import ImageData
from .named import CLASS_NAMES, load_arrays
from .specs import check_within, read_path, read_split, unknown_data

DEMO_IMAGES = "demo-images.npz"


@dataclass(frozen=True)
class _Wanted:
    """How a spec's data is to be read: the arguments of ``load_data``."""

    root: str | Path | None
    resize: int | Sequence[int] | str | None
    crop: int | Sequence[int] | str | None
    preprocessing: Any
    classes: str | Path | Sequence[str] | None
    skip_bad: bool
    max_bytes: int | None

    def check_kind(self, spec: str, kind: str) -> None:
        """Raise ``ConfigError`` for an argument that data of this kind has no use for."""
        of_folders = {"resize": self.resize, "crop": self.crop, "classes": self.classes, "skip_bad": self.skip_bad}
        for name, value in of_folders.items():
            if kind != "folder" and value not in (None, False):
                raise ConfigError(
                    f"{name} (--{name.replace('_', '-')}) is for folder:DIR, but the data is {spec!r}; leave it out"
                )
        if kind != "npz" and self.max_bytes is not None:
            raise ConfigError(f"max_bytes (--max-bytes) is for npz:FILE, but the data is {spec!r}; leave it out")


def load_data(
    spec: str,
    *,
    root: str | Path | None = None,
    resize: int | Sequence[int] | str | None = None,
    crop: int | Sequence[int] | str | None = None,
    preprocessing: Any = None,
    classes: str | Path | Sequence[str] | None = None,
    skip_bad: bool = False,
    max_bytes: int | None = None,
    labels: bool = True,
) -> ImageData:
    """Load the data set that a DATA spec names.

    Images of a folder stay on the disk: each is decoded once here, so that a broken one is found at once, and again
    whenever it is needed. They are turned upright as their EXIF says, transparent parts are laid over white, and grey
    of 16 bits is scaled to 8.

    Parameters
    ----------
    spec
        ``NAME[:split][:which]`` for fashion-mnist, mnist and cifar10 (split ``test`` by default);
        ``folder:DIR[:which]`` with one folder of images per class, or with images alone, which then have no labels;
        ``npz:FILE[:which]`` with arrays ``images`` and ``labels``, or ``images`` alone; ``demo[:which]``, the shipped
        images. ``which`` is a count (that many images from the start) or ``start-stop`` as in a Python slice:
        ``fashion-mnist:train:50000-60000`` is the last sixth of the training images. When part of a folder is asked
        for, its classes take turns, so that every part has images of all classes.
    root
        Folder to search first for named data sets, and to download them to.
    resize, crop
        For a folder: the size of its images, as torchvision's ``Resize`` and ``CenterCrop`` make it, with bilinear
        interpolation. ``resize`` is the shorter side, or height and width; ``crop`` a square, or height and width.
    preprocessing
        Where ``resize``, ``crop`` and the interpolation are taken from if neither size is given; anything that
        ``purifier.guard`` takes, such as torchvision's ``weights.transforms()``.
    classes
        For a folder: the classifier's classes in its order, as a list or as a file where line K from 0 names class K.
        The folders are then called like these names or WordNet ids. By default the folders' names in alphabetical
        order are the classes.
    skip_bad
        For a folder: leave out images that cannot be read; ``skipped`` of the result lists them.
    max_bytes
        For an npz: how much its arrays may hold once decompressed, by default 512 MiB.
    labels
        Whether to keep the labels, if there are any. Without them the same images are as from data without labels.

    Raises
    ------
    SpecError
        The spec cannot be read.
    ConfigError
        An argument has an impossible value, or is not for this kind of data.
    DataError
        The data is missing, empty or damaged, or not images in [0, 1].
    """
    if not labels and classes is not None:
        raise ConfigError(
            "classes (--classes) says what labels mean, but labels are left out; leave out one of the two"
        )
    wanted = _Wanted(root, resize, crop, preprocessing, classes, skip_bad, max_bytes)
    try:
        found = _load(spec, wanted)
    except OSError as error:  # such as a folder without permission, or a name that is too long
        path = error.filename or spec
        raise DataError(f"cannot read {path}: {error.strerror or error}; give data that you can read", path) from error
    return found if labels else found.without_labels()


def _load(spec: str, wanted: _Wanted) -> ImageData:
    kind, _, rest = spec.partition(":")
    if kind in CLASS_NAMES or kind in ("folder", "npz", "demo"):
        wanted.check_kind(spec, kind)
    if kind in ("folder", "npz"):
        path, which = read_path(spec, rest)
        if kind == "folder":
            return _load_folder(spec, path, which, wanted)
        return from_arrays(spec, *read_npz(path, wanted.max_bytes), which=which)
    if kind == "demo":
        _, which = read_split(spec, rest, splits=())
        path = Path(str(files("purifier.assets") / DEMO_IMAGES))
        return from_arrays(spec, *read_npz(path), CLASS_NAMES["fashion-mnist"], which)
    if kind not in CLASS_NAMES:
        raise unknown_data(spec, kind)
    split, which = read_split(spec, rest, splits=("train", "test"))
    images, labels = load_arrays(kind, train=split == "train", root=wanted.root)
    return from_arrays(spec, images, labels, CLASS_NAMES[kind], which)


def _load_folder(spec: str, folder: Path, which: range | None, wanted: _Wanted) -> ImageData:
    framing = read_framing(wanted.resize, wanted.crop, wanted.preprocessing)
    classes = None if wanted.classes is None else read_classes(wanted.classes)
    paths, labels, names = find_images(folder, classes)
    if which is not None:
        check_within(spec, which, len(paths))
        order = (range(len(paths)) if labels is None else in_turn(labels))[which.start : which.stop]
        paths = [paths[position] for position in order]
        labels = labels and [labels[position] for position in order]
    images = ImageFiles(paths, framing=framing, skip_bad=wanted.skip_bad)
    kept = None if labels is None else torch.tensor([labels[position] for position in images.kept])
    return ImageData(spec, images, kept, names, skipped=images.skipped)


def from_arrays(
    spec: str,
    images: NDArray[np.generic],
    labels: NDArray[np.generic] | None,
    classes: Sequence[str] = (),
    which: range | None = None,
) -> ImageData:
    """Arrays as ``ImageData``: images (N, H, W), (N, C, H, W) or (N, H, W, C), and labels (N,) or None."""
    images = _channels_first(spec, images)
    if which is not None:
        check_within(spec, which, len(images))
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{spec}: expected images of uint8, or floats in [0, 1], got {images.dtype}", spec)
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{spec}: expected labels (N,) of integers, got {labels.dtype}", spec)
    if which is not None and (labels is None or labels.shape == images.shape[:1]):  # else ImageData raises the error
        images = images[which.start : which.stop]
        labels = labels if labels is None else labels[which.start : which.stop]
    kind = np.uint8 if images.dtype == np.uint8 else np.float32
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and ImageData checks the range
        images = np.array(images, dtype=kind, order="C")
    return ImageData(
        spec,
        torch.from_numpy(images),
        None if labels is None else torch.from_numpy(np.array(labels, dtype=np.int64)),
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
