"""The user's folder for what can be made again: where it is, whether it can be trusted, and how full it may get."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from ..atomic import atomic_path
from ..errors import OutputError

VARIABLE = "PURIFIER_CACHE"
"""The environment variable with the folder, or 0 for none."""
MAX_BYTES, MAX_FILES = 500_000_000, 500
ABANDONED = 3600.0
"""Seconds after which a temporary file is left over from a process that was killed."""
OTHERS = stat.S_IWGRP | stat.S_IWOTH

_off: ContextVar[bool] = ContextVar("off", default=False)


@contextmanager
def no_cache() -> Iterator[None]:
    """Neither read nor write the cache in this ``with`` block."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def cache_folder() -> Path | None:
    """The folder, which may not exist yet; None if the cache is switched off or the user has no home."""
    given = os.environ.get(VARIABLE, "")
    if _off.get() or given == "0":
        return None
    if given:
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "purifier" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "purifier"
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else home / ".cache") / "purifier"  # as its specification says


class Shelf:
    """The files of one kind in the cache, each under a name; whatever fails, the cache is as if it were empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """The content of a file, which then counts as used now; None if there is none that can be trusted."""
        with suppress(OSError):
            if not self.trusted():
                return None
            # A link or a pipe in place of the file must not be followed or waited for.
            flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            with open(os.open(self.folder / name, os.O_RDONLY | flags), "rb") as file:  # noqa: PTH123  # a Path has no flags
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or not _own(status) or status.st_size > MAX_BYTES:
                    return None
                content = file.read()
            with suppress(OSError):
                os.utime(self.folder / name)
            return content
        return None

    def write(self, name: str, content: bytes) -> None:
        """Keep a file, if that is possible and it is not too large, and drop those unused for longest."""
        if 2 * len(content) > MAX_BYTES:
            return
        with suppress(OSError, OutputError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.trusted():
                return
            with atomic_path(self.folder / name) as temporary:
                temporary.write_bytes(content)
                temporary.chmod(0o600)
            self.prune()

    def prune(self) -> None:
        """Remove the files unused for longest until the rest is within the bounds."""
        files = sorted(self.files(), key=lambda pair: pair[1].st_mtime_ns, reverse=True)
        size, count = 0, 0
        for path, status in files:
            size, count = size + status.st_size, count + 1
            abandoned = path.suffix == ".tmp" and status.st_mtime < time.time() - ABANDONED
            if size > MAX_BYTES or count > MAX_FILES or abandoned:
                size, count = size - status.st_size, count - 1
                with suppress(OSError):
                    path.unlink()

    def files(self) -> list[tuple[Path, os.stat_result]]:
        """All files and their states; another process may remove them at any time."""
        found = []
        with suppress(OSError):
            for path in self.folder.iterdir():
                with suppress(OSError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        found.append((path, status))
        return found

    def trusted(self) -> bool:
        """Whether the folder exists, is the user's own, and no other user can write in it."""
        try:
            status = self.folder.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and _own(status)


def _own(status: os.stat_result) -> bool:
    """Whether a file belongs to this user alone; where files have no owners, their folder is the user's."""
    return os.name != "posix" or (status.st_uid == os.geteuid() and not status.st_mode & OTHERS)
