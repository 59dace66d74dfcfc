"""A journal: what an audit has found so far, so that one which was cut off goes on where it stopped.

The file grows by one record at a time: a line with the record's length in bytes, its CRC-32, and the CRC-32 of these
two; a line of JSON; tensors as safetensors; a line break. The first record says which audit it is. An incomplete record
at the end is what a process left that was killed while it wrote, and is cut off; any other damage is an error.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..atomic import unwritable
from ..errors import FileError, OutputError
from ..exclusive import exclusive
from ..foreign_code import Attempt
from .outcome import CleanOutcome, Outcome, Record

FORMAT = 1
"""The version of the records."""
HEADER, CHECKS, POOL = "audit", "checks", "pool"
"""The records that are no outcomes: which audit it is, what the self-checks found, and purified examples."""
BEGINS_AGAIN = "--overwrite starts the audit anew (in Python overwrite=True)"


class Journal:
    """The records of one audit by name; without a path nothing is kept, and nothing found."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path()
        self._places: dict[str, tuple[int, int]] = {}
        self._file: RawIOBase | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._places

    @property
    def header(self) -> dict[str, Any]:
        """What the journal says of its audit."""
        found = self.read(HEADER)
        assert found is not None  # ``load`` and ``opened`` see to it
        return {name: value for name, value in found[0].items() if name != "format"}

    def read(self, name: str) -> Record | None:
        """The record of this name; None if there is none."""
        if name not in self._places:
            return None
        start, length = self._places[name]
        with self.path.open("rb") as file:
            file.seek(start)
            return _unpacked(file.read(length))

    def write(self, name: str, record: Record) -> None:
        """Add a record, and wait until it is on the disk.

        Raises
        ------
        OutputError
            It cannot be written, for example because the disk is full.
        """
        if self._file is None:
            return
        payload = _packed(name, record)
        line = _line(payload)
        content = memoryview(line + payload + b"\n")
        try:
            start = self._file.seek(0, os.SEEK_END) + len(line)
            while content:  # a write on a nearly full disk may be a partial one
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._places[name] = (start, len(payload))

    def clean(self, start: int) -> CleanOutcome | None:
        """What the clean images of the batch that begins at image ``start`` came to."""
        found = self.read(f"clean {start}")
        return None if found is None else CleanOutcome.read(found)

    def outcome(self, start: int, number: int) -> Outcome | None:
        """What job ``number`` came to on that batch."""
        found = self.read(f"job {number} {start}")
        return None if found is None else Outcome.read(found)

    def add_clean(self, start: int, outcome: CleanOutcome) -> None:
        """Keep what ``clean`` will give."""
        self.write(f"clean {start}", outcome.record())

    def add(self, start: int, number: int, outcome: Outcome) -> None:
        """Keep what ``outcome`` will give."""
        self.write(f"job {number} {start}", outcome.record())

    def load(self) -> int:
        """Find the records of the file; return how many bytes of it are whole records.

        Raises
        ------
        FileError
            The file cannot be read, or is damaged.
        """
        end = 0
        try:
            with self.path.open("rb") as file:
                for name, start, length in _records(file, self.path):
                    self._places[name] = (start, length)
                    end = start + length + 1
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror or error}", self.path) from error
        found = self.read(HEADER) if end else None
        if end and (found is None or found[0].get("format") != FORMAT):
            got = None if found is None else found[0].get("format")
            raise FileError(
                f"{self.path}: expected a journal of format {FORMAT}, got {got!r}; go on with the version of purifier "
                f"that wrote it; {BEGINS_AGAIN}",
                self.path,
            )
        return end


@contextmanager
def opened(path: Path | None, header: Mapping[str, Any], *, overwrite: bool) -> Iterator[Journal]:
    """The journal of the audit that ``header`` describes, to read and to add to; no other process may have it open.

    Raises
    ------
    OutputError
        The file has the journal of another audit, another process writes it, or it cannot be written.
    FileError
        It is damaged.
    """
    if path is None:
        yield Journal()
        return
    with exclusive(path):
        if overwrite and _is_another(path, header):
            path.unlink()
        journal = Journal(path)
        whole = journal.load() if path.exists() else 0
        try:
            journal._file = path.open("r+b" if whole else "w+b", buffering=0)
            journal._file.truncate(whole)
        except OSError as error:
            raise unwritable(path, error) from error
        with journal._file:
            if whole:
                _check_same(path, journal, header)
            else:
                journal.write(HEADER, ({"format": FORMAT, **header}, {}))
            yield journal


def batch_size_in(path: Path | None, *, overwrite: bool) -> int | None:
    """The batch size of the audit whose journal is at ``path``; None if there is none, or it may be given up."""
    if path is None or overwrite or not path.exists():
        return None
    journal = Journal(path)
    return int(journal.header["facts"]["batch_size"]) if journal.load() else None


def _is_another(path: Path, header: Mapping[str, Any]) -> bool:
    """Whether there is a journal at ``path`` that is damaged or of another audit."""
    journal = Journal(path)
    with Attempt((FileError,)) as attempt:
        if path.exists() and journal.load():
            return bool(_differing(journal, header))
    return attempt.error is not None


def _check_same(path: Path, journal: Journal, header: Mapping[str, Any]) -> None:
    differing = _differing(journal, header)
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise OutputError(
            f"{path} is the journal of another audit that was cut off: {'; '.join(differing[:3])}{more}; run the same "
            f"command to go on with that one, choose another folder, or give up what it found: {BEGINS_AGAIN}",
            path,
        )


def _differing(journal: Journal, header: Mapping[str, Any]) -> list[str]:
    found = differences(journal.header, json.loads(json.dumps(header)))
    return [one.removeprefix("facts.") for one in found]


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Where two JSON values differ, such as ``seed was 0, is 1``."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from differences(one, other, f"{name}.{place}")
    elif isinstance(before, list) and isinstance(now, list):
        yield f"{name} were {len(before)}, are {len(now)}"
    elif before != now:
        yield f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(payload: bytes) -> bytes:
    line = b"%d %08x" % (len(payload), zlib.crc32(payload))
    return b"%b %08x\n" % (line, zlib.crc32(line))


def _packed(name: str, record: Record) -> bytes:
    values, tensors = record
    whole = {key: value.contiguous() for key, value in tensors.items()}
    return json.dumps({"name": name, **values}, allow_nan=False).encode() + b"\n" + save(whole)


def _unpacked(payload: bytes) -> Record:
    text, _, content = payload.partition(b"\n")
    values: dict[str, Any] = json.loads(text)
    del values["name"]
    tensors: dict[str, Tensor] = load(content)
    return values, tensors


def _records(file: IO[bytes], path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, start and length of each whole record."""
    size = os.fstat(file.fileno()).st_size
    while (begin := file.tell()) < size:
        line = file.readline(64)
        if not line.endswith(b"\n") and file.tell() == size:
            return  # the process was killed here
        length, crc = _read_line(line, path, begin)
        start = file.tell()
        if start + length + 1 > size:
            return
        payload, end = file.read(length), file.read(1)
        try:
            if end != b"\n" or zlib.crc32(payload) != crc:
                raise ValueError("a wrong checksum")
            name = json.loads(payload.partition(b"\n")[0])["name"]
            _unpacked(payload)
        except (ValueError, KeyError, TypeError, SafetensorError):
            raise _damaged(path, begin) from None
        yield name, start, length


def _read_line(line: bytes, path: Path, begin: int) -> tuple[int, int]:
    """Length and checksum of the record after this line."""
    try:
        length, crc, own = line.split()
        if zlib.crc32(line[:-10]) != int(own, 16):
            raise ValueError("a wrong checksum")
        return int(length), int(crc, 16)
    except ValueError:
        raise _damaged(path, begin) from None


def _damaged(path: Path, at: int) -> FileError:
    keeping = f"`truncate --size {at} {path}` keeps what is before it, and " if at else ""
    return FileError(
        f"{path} is damaged at byte {at}: what follows cannot be trusted; {keeping}{BEGINS_AGAIN}",
        path,
    )
