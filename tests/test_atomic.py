"""Files appear whole or not at all, also when the writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from purifier.atomic import atomic_path, atomic_write
from purifier.errors import OutputError


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = atomic_write(tmp_path / "deep" / "file.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.integration
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = atomic_write(tmp_path / "file.bin", b"old")
    code = (
        "import os, signal; from purifier.atomic import atomic_path\n"
        f"with atomic_path({str(target)!r}) as t:\n t.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    (left,) = tmp_path.glob(".file.bin.*.tmp")
    others = [tmp_path / ".file.bin.0badcafe.1.ab.tmp", tmp_path / left.name.replace("file.bin", "file.bin2")]
    running = tmp_path / left.name.replace(left.name.split(".")[-3], str(os.getpid()))
    for file in (*others, running):
        file.write_text("somebody else's")
    atomic_write(target, b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"file.bin", running.name, *(file.name for file in others)}


@pytest.mark.parametrize("place", ["file.txt/inside.txt", "."])
def test_unwritable_paths_are_errors(tmp_path: Path, place: str) -> None:
    (tmp_path / "file.txt").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        atomic_write(tmp_path / place, "new")
    assert (tmp_path / "file.txt").read_text() == "a file"


def test_folders_made_for_a_write_that_fails_are_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "kept" / "a" / "b" / "file.txt"):
        raise ZeroDivisionError
    assert not list((tmp_path / "kept").iterdir())
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "c" / "d" / "file.txt"):
        (tmp_path / "c" / "other.txt").write_text("somebody else's")
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["other.txt"]


def test_a_file_has_the_umasks_mode_and_the_umask_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            # Even for a moment: another thread's files would be open to everybody.
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to the whole process"))
            written = atomic_write(tmp_path / "file.txt", "new")
    finally:
        os.umask(before)
    assert written.stat().st_mode & 0o777 == 0o640
