from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shade import SHAPE, Shade

import onnx_models
import purifier
from purifier.contracts.purifier import Purifier
from purifier.data.pixels import Preprocessing
from purifier.onnx import cache_folder, front_cache, loaded_code
from purifier.onnx.cache_folder import Shelf, no_cache
from purifier.onnx.front_cache import kept_graph

pytestmark = pytest.mark.usefixtures("shelf")
needs_owners = pytest.mark.skipif(os.name != "posix", reason="files have no owners")


def graph(given: Purifier, **options: Any) -> bytes:
    return bytes(kept_graph(given, Preprocessing(), image_shape=SHAPE, **options).SerializeToString())


def answers(**options: Any) -> Any:
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    return purifier.guard(onnx_models.linear(), Shade(), **options).run(None, {"images": images})[0]


def test_a_second_guard_gets_the_kept_graph_and_answers_the_same(exports: list[Purifier], shelf: Shelf) -> None:
    first, second = answers(), answers()
    assert len(exports) == 1 and kinds(shelf) == [".front", ".graft"]
    assert np.array_equal(first, second) and np.array_equal(first, answers(cache=False))
    assert len(exports) == 2


def kinds(shelf: Shelf) -> list[str]:
    return sorted(path.suffix for path, _ in shelf.files())


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content.replace(content.split()[2], b"0" * 64, 1),
        lambda content: pickle.dumps(print),
    ],
    ids=["flipped", "truncated", "empty", "key", "pickle"],
)
def test_a_damaged_or_foreign_file_is_made_anew(
    damage: Callable[[bytes], bytes], exports: list[Purifier], shelf: Shelf
) -> None:
    graph(Shade())
    ((file, _),) = shelf.files()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    made = graph(Shade())
    assert len(exports) == 2 and file.read_bytes() == whole and whole.endswith(made)
    graph(Shade())
    assert len(exports) == 2


def test_a_file_that_was_hashed_but_reads_other_files_is_made_anew(exports: list[Purifier], shelf: Shelf) -> None:
    graph(Shade())
    ((file, _),) = shelf.files()
    model = kept_graph(Shade(), Preprocessing(), image_shape=SHAPE)
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = stored.EXTERNAL
    stored.external_data.add(key="location", value="/etc/passwd")
    key = front_cache._key(Shade(), {"preprocessing": Preprocessing(), "image_shape": SHAPE})
    file.write_bytes(front_cache._packed(model.SerializeToString(), str(key)))
    graph(Shade())
    assert len(exports) == 2


@needs_owners
@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_cache_in_which_others_can_write_is_not_used(what: str, exports: list[Purifier], shelf: Shelf) -> None:
    graph(Shade())
    ((file, before),) = shelf.files()
    (shelf.folder if what == "folder" else file).chmod(0o777)
    graph(Shade())
    assert len(exports) == 2
    if what == "folder":
        assert file.stat().st_ino == before.st_ino, "nothing is written there either"


@needs_owners
def test_a_cache_of_another_user_is_not_used(
    exports: list[Purifier], shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph(Shade())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    graph(Shade())
    assert len(exports) == 2


@needs_owners
def test_links_and_pipes_are_not_followed(exports: list[Purifier], shelf: Shelf) -> None:
    graph(Shade())
    ((file, _),) = shelf.files()
    moved = file.rename(shelf.folder.parent / "moved")
    file.symlink_to(moved)
    graph(Shade())
    file.unlink()
    os.mkfifo(file)
    graph(Shade())
    assert len(exports) == 3
    real = shelf.folder.rename(shelf.folder.parent / "real")
    shelf.folder.symlink_to(real)
    graph(Shade())
    assert len(exports) == 4


def test_new_files_are_the_users_alone_whatever_the_umask(shelf: Shelf) -> None:
    before = os.umask(0o002)
    try:
        graph(Shade())
    finally:
        os.umask(before)
    ((_, status),) = shelf.files()
    assert shelf.trusted() and (os.name != "posix" or status.st_mode & 0o777 == 0o600)


def test_the_files_unused_for_longest_are_removed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "MAX_BYTES", 100)
    for place, name in enumerate("abc"):
        shelf.write(name, bytes(30))
        os.utime(shelf.folder / name, (place, place))
    assert shelf.read("a") is not None  # used now
    shelf.write("d", bytes(30))
    assert sorted(path.name for path, _ in shelf.files()) == ["a", "c", "d"]
    shelf.write("large", bytes(51))
    assert shelf.read("large") is None
    monkeypatch.setattr(cache_folder, "MAX_FILES", 2)
    shelf.write("e", bytes(1))
    assert len(shelf.files()) == 2 and shelf.read("e") == bytes(1)


def test_what_killed_processes_left_is_removed(shelf: Shelf) -> None:
    shelf.write("a", b"1")
    left, fresh = (shelf.folder / f".{name}.0.1.2.tmp" for name in ("left", "fresh"))
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(left, (0, 0))
    shelf.write("b", b"2")
    assert sorted(path.name for path, _ in shelf.files()) == [fresh.name, "a", "b"]


def test_without_a_writable_folder_all_works_as_without_a_cache(
    exports: list[Purifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        monkeypatch.setenv("PURIFIER_CACHE", str(place))
        graph(Shade())
    assert len(exports) == 3


def _full() -> int:
    loaded_code.STARTED = math.inf
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    return len(graph(Shade()))


@pytest.mark.integration
@needs_owners
def test_a_full_disk_is_no_error_and_leaves_nothing(shelf: Shelf) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_full).result() > 100
    assert not shelf.files()


def test_off_means_neither_read_nor_written(
    exports: list[Purifier], shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_cache():
        graph(Shade())
    monkeypatch.setenv("PURIFIER_CACHE", "0")
    graph(Shade())
    assert len(exports) == 2 and not shelf.folder.exists()


def test_the_folder_follows_the_platforms_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PURIFIER_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder.cache_folder() == tmp_path / ".cache" / "purifier"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder.cache_folder() == tmp_path / ".cache" / "purifier"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert cache_folder.cache_folder() == tmp_path / "own" / "purifier"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder.cache_folder() == tmp_path / "Library" / "Caches" / "purifier"


def _guarded(number: int) -> Any:
    loaded_code.STARTED = math.inf
    return answers()


@pytest.mark.integration
def test_processes_that_start_at_once_share_the_cache(shelf: Shelf) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_guarded, range(6)))
    assert all(np.array_equal(one, found[0]) for one in found) and np.array_equal(found[0], answers())
    assert kinds(shelf) == [".front", ".graft"], "whole files, nothing left over"
