from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import onnx_models
import purifier
from purifier.contracts.purifier import Purifier
from purifier.data.pixels import Preprocessing
from purifier.onnx import cache_folder, front_cache, loaded_code
from purifier.onnx.cache_folder import Shelf, no_cache
from purifier.onnx.front_cache import kept_graph
from purifier.onnx.front_key import front_key
from purifier.onnx.loaded_code import Unkeyed
from purifier.rejection.policy import Rejection

SHAPE = (None, 3, 8, 8)
needs_owners = pytest.mark.skipif(os.name != "posix", reason="files have no owners")


@dataclass(frozen=True)
class ShadeConfig:
    factor: float = 0.5


class Shade(Purifier):
    """Darkens, by its config, a weight and an attribute."""

    Config = ShadeConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def __init__(self, config: ShadeConfig = ShadeConfig()) -> None:  # frozen
        super().__init__(config)
        self.weight = nn.Parameter(torch.tensor([0.5]))
        self.power: Any = 1

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels * self.weight * self.config.factor**self.power


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """An empty cache; source files that were just edited count as old."""
    monkeypatch.setenv("PURIFIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loaded_code, "STARTED", math.inf)
    found = front_cache.front_shelf()
    assert found is not None
    return found


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Purifier]:
    """The purifiers that were really exported, in order."""
    made: list[Purifier] = []
    real: Callable[..., Any] = front_cache.purifier_graph

    def counted(exported: Purifier, *args: Any, **options: Any) -> Any:
        made.append(exported)
        return real(exported, *args, **options)

    monkeypatch.setattr(front_cache, "purifier_graph", counted)
    return made


def graph(given: Purifier, **options: Any) -> bytes:
    return bytes(kept_graph(given, Preprocessing(), image_shape=SHAPE, **options).SerializeToString())


def answers(**options: Any) -> Any:
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    return purifier.guard(onnx_models.linear(), Shade(), **options).run(None, {"images": images})[0]


def test_a_second_guard_gets_the_kept_graph_and_answers_the_same(exports: list[Purifier], shelf: Shelf) -> None:
    first, second = answers(), answers()
    assert len(exports) == 1 and len(shelf.files()) == 1
    assert np.array_equal(first, second) and np.array_equal(first, answers(cache=False))
    assert len(exports) == 2


def test_what_decides_the_graph_decides_the_key() -> None:
    def of(given: Purifier, **options: Any) -> str:
        return front_key(given, options)

    trained, powered = Shade(), Shade()
    with torch.no_grad():
        trained.weight += 1e-7
    powered.power = 2
    made = [
        of(Shade()),
        of(Shade(ShadeConfig(0.25))),
        of(trained),
        of(powered),
        of(Shade().double()),
        of(purifier.load("identity")),
        of(purifier.load("blur")),
        of(purifier.load("blur:sigma=2")),
        of(purifier.load("latent:base=demo-plain")),
        of(purifier.load("latent:base=demo-plain,steps=3")),
        of(Shade(), preprocessing=Preprocessing(scale=255)),
        of(Shade(), image_shape=(None, 3, 9, 9)),
        of(Shade(), rejection=Rejection("flag", threshold=1.0)),
        of(Shade(), rejection=Rejection("flag", threshold=2.0)),
        of(Shade(), opset=21),
        of(Shade(), opset=21, score=True),
    ]
    assert len(set(made)) == len(made)
    assert of(Shade()) == of(Shade().train()) == made[0], "a graph is that of a copy in evaluation mode"


@pytest.mark.parametrize("library", ["torch", "onnxscript"])
def test_another_version_of_a_library_is_another_key(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from purifier.onnx import front_key as module

    before = front_key(Shade(), {})
    versions = [f"{name} of tomorrow" if name == library else name for name in module.VERSIONS]
    monkeypatch.setattr(module, "_versions", lambda: versions)
    assert front_key(Shade(), {}) != before


def hooked() -> Purifier:
    made = Shade()
    made.register_forward_hook(lambda *_: None)
    return made


def with_a_function() -> Purifier:
    made = Shade()
    made.power = lambda: 1
    return made


def with_its_own_method() -> Purifier:
    made = Shade()
    made.purify = lambda pixels, noise=None: pixels  # type: ignore[method-assign]
    return made


def of_a_function() -> Purifier:
    class Inner(Shade):
        pass

    return Inner()


def of_a_notebook() -> Purifier:
    return type("Cell", (Shade,), {"__module__": "__main__"})()  # type: ignore[no-any-return]


def with_itself() -> Purifier:
    made = Shade()
    made.power = [made]
    made.power.append(made.power)
    return made


@pytest.mark.parametrize(
    "make", [hooked, with_a_function, with_its_own_method, of_a_function, of_a_notebook, with_itself]
)
def test_what_no_key_can_stand_for_is_not_kept(make: Callable[[], Purifier]) -> None:
    with pytest.raises(Unkeyed):
        front_key(make(), {})


def test_a_purifier_without_a_key_is_exported_each_time(exports: list[Purifier], shelf: Shelf) -> None:
    for _ in range(2):
        kept_graph(of_a_function(), Preprocessing(), image_shape=SHAPE)
    assert len(exports) == 2 and not shelf.files()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package under development with a purifier, a helper in it, and one in a module beside it."""
    folder = tmp_path / "developed"
    (folder / "darkening").mkdir(parents=True)
    (folder / "darkening" / "__init__.py").write_text(
        "from test_front_cache import Shade\nfrom beside import half\nclass Dark(Shade):\n    pass\n"
    )
    (folder / "darkening" / "lazily.py").write_text("FACTOR = 1\n")
    (folder / "beside.py").write_text("def half(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield folder
    for name in ("darkening", "beside"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("changed", ["darkening/__init__.py", "darkening/lazily.py", "beside.py"])
def test_changed_code_is_another_key_in_the_next_process(plugin: Path, changed: str) -> None:
    before = front_key(importlib.import_module("darkening").Dark(), {})
    assert before == front_key(importlib.import_module("darkening").Dark(), {})
    file = plugin / changed
    file.write_text(file.read_text() + "# changed\n")
    for name in ("darkening", "beside"):
        sys.modules.pop(name, None)
    assert front_key(importlib.import_module("darkening").Dark(), {}) != before


def test_code_changed_after_it_was_read_has_no_key(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = importlib.import_module("darkening").Dark()
    newest = max(file.stat().st_ctime for file in plugin.rglob("*.py"))
    others = max(Path(str(module.__file__)).stat().st_ctime for module in (sys.modules[__name__], loaded_code))
    monkeypatch.setattr(loaded_code, "STARTED", max(newest, others) + loaded_code.MARGIN + 0.001)
    front_key(made, {})
    file = plugin / "darkening" / "lazily.py"
    times = file.stat()
    file.write_text("FACTOR = 2\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times
    monkeypatch.setattr(loaded_code, "STARTED", file.stat().st_ctime + loaded_code.MARGIN - 0.001)
    with pytest.raises(Unkeyed, match="may have changed"):
        front_key(made, {})


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
    key = front_cache._key(Shade(), Preprocessing(), {"image_shape": SHAPE})
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
    assert [path.suffix for path, _ in shelf.files()] == [".front"], "one whole file, nothing left over"


@pytest.mark.integration
def test_another_process_finds_the_graph(shelf: Shelf) -> None:
    """The key depends on nothing of the process: neither its hash seed nor what else it imported."""
    code = (
        "import math, sys; sys.path[:0] = sys.argv[1:]\n"
        "import purifier, purifier.cli, sklearn\n"
        "from purifier.onnx import loaded_code; loaded_code.STARTED = math.inf\n"
        "from purifier.onnx.front_key import front_key\n"
        "from test_front_cache import Shade\n"
        "print([front_key(made, {}) for made in (Shade(), purifier.load('demo'), purifier.load('latent:base=demo'))])"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        shade = importlib.import_module("test_front_cache").Shade
    finally:
        sys.path.pop(0)
    mine = [front_key(made, {}) for made in (shade(), purifier.load("demo"), purifier.load("latent:base=demo"))]
    assert done.stdout.strip() == str(mine), done.stderr
