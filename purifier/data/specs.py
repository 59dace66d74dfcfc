"""Parse DATA specs: which split of a data set, and which of its images."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ..errors import SpecError
from .named import CLASS_NAMES

FORMS = (
    f"NAME[:train|test][:count|:start-stop] with NAME of {', '.join(CLASS_NAMES)}; folder:DIR[:...]; "
    "npz:FILE[:...]; demo[:count|:start-stop]"
)


def read_split(spec: str, rest: str, *, splits: tuple[str, ...]) -> tuple[str, range | None]:
    """``"train:50000-60000"`` -> the split (``test`` by default) and the range of images, None for all.

    Parameters
    ----------
    spec
        The whole spec, for messages.
    rest
        The text after the data set's name.
    splits
        The data set's splits; empty if it has none.

    Raises
    ------
    SpecError
        The text cannot be read, or it selects no image.
    """
    parts = rest.split(":") if rest else []
    split = parts.pop(0) if parts and parts[0] in splits else "test"
    if not parts:
        return split, None
    try:
        (text,) = parts
        if not re.fullmatch(r"-?\d+(--?\d+)?", text, re.ASCII):
            raise ValueError(text)
        bounds = re.fullmatch(r"(-?\d+)-(-?\d+)", text)
        start, stop = map(int, bounds.groups()) if bounds else (0, int(text))
    except ValueError:
        raise SpecError(f"cannot read DATA {spec!r}: expected {FORMS}", spec) from None
    if bounds and not 0 <= start < stop:
        raise SpecError(
            f"DATA {spec!r}: expected start-stop with 0 <= start < stop, such as 0-100, got {text}; the first image "
            "is 0, and stop is excluded",
            spec,
        )
    if stop < 1:
        raise SpecError(f"DATA {spec!r}: expected a count of at least 1, got {stop}", spec)
    return split, range(start, stop)


def read_path(spec: str, rest: str) -> tuple[Path, range | None]:
    """``"photos:100"`` -> the path of a ``folder:`` or ``npz:`` spec and the range of images, None for all.

    A path that exists is taken as it is, even if it ends like a range.

    Raises
    ------
    SpecError
        There is no path, or the range selects no image.
    """
    if not rest:
        raise SpecError(f"no path in DATA {spec!r}: expected folder:DIR or npz:FILE", spec)
    path, _, which = rest.rpartition(":")
    if not path or not re.fullmatch(r"-?\d+(--?\d+)?", which, re.ASCII) or Path(rest).exists():
        return Path(rest), None
    return Path(path), read_split(spec, which, splits=())[1]


def check_within(spec: str, wanted: range, count: int) -> None:
    """Raise ``SpecError`` if the range goes beyond a data set of ``count`` images."""
    if wanted.stop > count:
        images = f"images {wanted.start}-{wanted.stop}" if wanted.start else f"{wanted.stop} images"
        raise SpecError(f"DATA {spec!r}: asked for {images}, but there are only {count}", spec)


def unknown_data(spec: str, kind: str) -> SpecError:
    """The error for a spec that names no known data set, with a suggestion."""
    path = Path(spec)
    if spec and (path.is_dir() or path.suffix == ".npz"):
        return SpecError(f"DATA {spec!r} is a path: write {'folder' if path.is_dir() else 'npz'}:{spec}", spec)
    close = difflib.get_close_matches(kind.lower().replace("_", "-"), (*CLASS_NAMES, "folder", "npz", "demo"), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return SpecError(f"no data set {kind!r}{hint} DATA is one of: {FORMS}", spec)
