"""One writer at a time: a second run that would write the same files ends before its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .atomic import remove_leftovers, unwritable
from .errors import OutputError


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Keep ``path`` for this process, by a lock on the file ``.NAME.lock`` beside it, which is removed at the end.

    The lock ends with the process, however it ends. Missing folders are created, and removed again if they stay empty.

    Raises
    ------
    OutputError
        Another run holds the path, or the lock cannot be created.
    """
    path = Path(path)
    missing: list[Path] = []
    try:
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.parent / f".{path.name}.lock", blocking=False)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"cannot write {path}: another run is writing it; wait for its end, or choose another place", path
        ) from None
    except (OSError, ValueError) as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise unwritable(path, error if isinstance(error, OSError) else OSError(str(error))) from error
    try:
        remove_leftovers(path)
        yield
    finally:
        # Removed while it is held: whoever has opened it meanwhile sees that it is gone.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
