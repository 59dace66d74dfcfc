"""Folders of images as they lie on a disk: one folder per class, or all images without labels."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError, DataError
from .files import SUFFIXES

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""Names of folders that hold parts of a data set, not classes."""
SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
"""What operating systems put beside people's folders."""


class Found(NamedTuple):
    """The images of a folder, in the order of their classes, then of their paths."""

    paths: list[Path]
    labels: list[int] | None
    """None without class folders."""
    classes: tuple[str, ...]


def find_images(folder: Path, classes: Sequence[str] | None) -> Found:
    """The images below ``folder``; files that begin with a dot, and files of other kinds, are passed over.

    Parameters
    ----------
    folder
        It holds a folder of images per class, or images alone, which then have no labels.
    classes
        The classifier's classes in its order, of which the folders' names are some; by default the folders themselves
        are the classes, in alphabetical order, empty ones included.

    Raises
    ------
    DataError
        There are no images; the folders are splits, not classes; or one is not among ``classes``.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; expected one with images, or with a folder of images per class", folder)
    inside = sorted(path for path in folder.iterdir() if not _is_hidden(path))
    folders = [path for path in inside if path.is_dir()]
    loose = [path for path in inside if _is_image(path)]
    found = {path: _images(path) for path in folders}
    full = [path for path in folders if found[path]]
    if loose and full:
        raise DataError(
            f"{folder} holds images ({loose[0].name}) beside folders of images ({full[0].name}); expected one or the "
            "other: move the images into class folders, or out of the way",
            loose[0],
        )
    if not loose and not full:
        raise DataError(f"{folder} holds no images; expected files in {' '.join(SUFFIXES)}", folder)
    if loose:
        if classes is not None:
            raise DataError(f"classes: {folder} holds images without class folders; leave classes out", folder)
        return Found(loose, None, ())
    names = [path.name for path in full] if classes is not None else [path.name for path in folders]
    _check_no_splits(folder, full, classes)
    place = _places(folder, names, classes)
    return Found(
        [image for path in full for image in found[path]],
        [place[path.name] for path in full for _ in found[path]],
        tuple(names) if classes is None else tuple(classes),
    )


def read_classes(given: str | Path | Sequence[str]) -> tuple[str, ...]:
    """The names of a classifier's classes in its order; from a file with a name or WordNet id per line.

    Raises
    ------
    DataError
        The file cannot be read or is empty.
    ConfigError
        Something else was given.
    """
    if isinstance(given, str | Path):
        path = Path(given)
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise DataError(
                f"cannot read classes {path}: {reason}; expected a text file, line K from 0 with the name of class K",
                path,
            ) from error
        if not names:
            raise DataError(f"classes {path} is empty; expected line K from 0 with the name of class K", path)
        return tuple(names)
    if not isinstance(given, list | tuple) or not given or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"classes: expected a file, or a list of names in the classifier's order, got {given!r}")
    return tuple(given)


def in_turn(labels: Sequence[int]) -> list[int]:
    """Positions of images in an order in which the classes take turns, so that each part of it has all of them."""
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_class.setdefault(label, []).append(position)
    rounds = zip_longest(*by_class.values())
    return [position for one in rounds for position in one if position is not None]


def _check_no_splits(folder: Path, full: Sequence[Path], classes: Sequence[str] | None) -> None:
    """A class may be called ``train``; folders that are all called like splits, or two of them, are no classes."""
    splits = [path for path in full if path.name.lower() in SPLITS and path.name not in (classes or ())]
    if splits and (len(splits) == len(full) or len(splits) > 1):
        raise DataError(
            f"{folder} holds {', '.join(path.name for path in splits)}: parts of a data set, not classes; give one of "
            f"them, such as folder:{splits[-1]}",
            folder,
        )


def _places(folder: Path, names: Sequence[str], classes: Sequence[str] | None) -> dict[str, int]:
    """The class of each folder."""
    if classes is None:
        return {name: label for label, name in enumerate(names)}
    places: dict[str, list[int]] = {}
    for label, line in enumerate(classes):
        wordnet = re.match(r"n\d{8}(?=\s)", line)  # "n01440764 tench, Tinca tinca"
        for name in {line, wordnet[0] if wordnet else line}:
            places.setdefault(name, []).append(label)
    for name in names:
        if len(places.get(name, ())) != 1:
            close = difflib.get_close_matches(name, places, n=1)
            problem = f"is in lines {' and '.join(map(str, places[name]))}" if name in places else "is no line"
            hint = f"; did you mean {close[0]!r}?" if close and name not in places else ""
            raise DataError(
                f"{folder / name}: the name {name!r} {problem} of the {len(classes)} in classes, such as "
                f"{classes[0]!r}{hint}; rename the folder, or correct classes",
                folder / name,
            )
    return {name: places[name][0] for name in names}


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_FOLDERS


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES and not _is_hidden(path))


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:  # by default os.walk, like Path.rglob, skips folders it cannot read
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not _is_hidden(Path(name))]
        yield from (Path(place, name) for name in names)
