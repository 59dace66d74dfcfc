"""Atomic file writes: a reader sees the old file or the new one, even if the process is killed."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` on success, remove it on failure.

    Missing folders are created, and removed again if the write fails.

    Raises
    ------
    OutputError
        The folder cannot be created, is not a folder, or is not writable.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    missing: list[Path] = []
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; give a file name", path)
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        # tempfile would make the file private, and the umask can only be read by changing it for all threads.
        temporary.open("xb").close()
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        with suppress(OSError):  # stops at the first folder that is not empty
            for folder in missing:
                folder.rmdir()
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write a whole file atomically; text is UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def unwritable(path: str | Path, error: OSError) -> OutputError:
    """The error for an output that the operating system cannot write."""
    return OutputError(f"cannot write {path}: {error.strerror or error}; choose a writable location", path)


def check_writable(folder: str | Path) -> None:
    """Raise ``OutputError`` unless a report can be written there, so that an audit fails before its work.

    Nothing is created: if the folder is missing, its nearest existing parent must be writable.
    """
    folder = Path(folder)
    try:
        # A broken link does not exist(), but no folder can be created in its place.
        nearest = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error
