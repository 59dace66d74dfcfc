"""Two runs never write the same files at the same time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from purifier.errors import OutputError
from purifier.exclusive import exclusive

HOLD = """
import sys, time
from purifier.exclusive import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_path_is_held_once_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with exclusive(path):
        with pytest.raises(OutputError, match="another run is writing it"), exclusive(path):
            pass
        with exclusive(path.with_name("other.txt")):
            pass
    with exclusive(path):
        path.write_text("kept")
    assert list(tmp_path.rglob("*")) == [path.parent, path]


def test_a_failing_run_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "file.txt"):
        raise ZeroDivisionError
    with exclusive(tmp_path / "file.txt"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file.txt/inside.txt", "a\0b.txt"])
def test_unwritable_places_are_errors(tmp_path: Path, place: str) -> None:
    (tmp_path / "file.txt").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"), exclusive(tmp_path / place):
        pass


@pytest.mark.integration
def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match="another run"), exclusive(path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=60)
    with exclusive(path):
        pass
    assert not list(tmp_path.iterdir())
