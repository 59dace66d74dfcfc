"""Atomic file writes: a reader sees the old file or the new one, even if the process is killed.

What a killed process leaves is a hidden ``.NAME.HOST.PROCESS.RANDOM.tmp``, which the next write of that file removes.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` on success, remove it on failure.

    Missing folders are created, and removed again if the write fails. What processes of this machine that have ended
    left of their writes is removed.

    Raises
    ------
    OutputError
        The folder cannot be created, is not a folder, or is not writable.
    """
    path = Path(path)
    temporary = path.parent / f"{_prefix(path)}{os.getpid()}.{secrets.token_hex(4)}.tmp"
    missing: list[Path] = []
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; give a file name", path)
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
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


def remove_leftovers(path: Path) -> None:
    """Remove temporary files for ``path`` whose writers, processes of this machine, have ended."""
    prefix = _prefix(path)
    for file in path.parent.iterdir():
        writer = file.name.removeprefix(prefix).partition(".")[0]
        if file.name.startswith(prefix) and file.suffix == ".tmp" and writer.isdecimal() and not _runs(int(writer)):
            with suppress(OSError):
                file.unlink()


def _prefix(path: Path) -> str:
    """What the names of temporary files for ``path`` begin with on this machine."""
    return f".{path.name}.{zlib.crc32(socket.gethostname().encode()):08x}."


def _runs(process: int) -> bool:
    """Whether a process exists; where that cannot be asked without harm, it is taken to."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


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
