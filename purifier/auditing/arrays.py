"""Arrays beside a report: an .npz file without pickles that names the audit it belongs to."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_path
from ..errors import FileError

Array = np.ndarray[Any, Any]
OWNER = ("created", "data_sha256")
"""What a report and its arrays both name."""


def write_arrays(path: Path, arrays: Mapping[str, Array], owner: Mapping[str, str]) -> Path:
    """Write arrays atomically; ``owner`` has the values of ``OWNER``."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        everything: dict[str, Any] = {**{name: np.array(owner[name]) for name in OWNER}, **arrays}
        np.savez_compressed(file, **everything)
    return path


def read_arrays(path: Path, owner: Mapping[str, str]) -> dict[str, Array]:
    """Read arrays, without ever unpickling.

    Raises
    ------
    FileError
        The file cannot be read, or belongs to another audit than ``owner``.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise FileError(f"cannot read {path} ({error}); run the audit again", path) from error
    for name in OWNER:
        given = str(found.pop(name, ""))
        if given != owner[name]:
            raise FileError(
                f"{path} belongs to another audit: expected {name} {owner[name]!r}, got {given!r}; keep the files of "
                "one audit in one folder",
                path,
            )
    return found
