"""The key under which a purifier's graph is kept: it changes with whatever may change the graph."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shade
import torch
from shade import SHAPE, Shade, ShadeConfig

import purifier
from purifier.contracts.purifier import Purifier
from purifier.data.pixels import Preprocessing
from purifier.onnx import loaded_code
from purifier.onnx.cache_folder import Shelf
from purifier.onnx.front_cache import kept_graph
from purifier.onnx.front_key import front_key
from purifier.onnx.loaded_code import Unkeyed
from purifier.rejection.policy import Rejection

pytestmark = pytest.mark.usefixtures("shelf")


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
        "from shade import Shade\nfrom beside import half\nclass Dark(Shade):\n    pass\n"
    )
    (folder / "darkening" / "lazily.py").write_text("FACTOR = 1\n")
    (folder / "beside.py").write_text("def half(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(str(folder))
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
    others = max(Path(str(module.__file__)).stat().st_ctime for module in (shade, loaded_code))
    monkeypatch.setattr(loaded_code, "STARTED", max(newest, others) + loaded_code.MARGIN + 0.001)
    front_key(made, {})
    file = plugin / "darkening" / "lazily.py"
    times = file.stat()
    file.write_text("FACTOR = 2\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times
    monkeypatch.setattr(loaded_code, "STARTED", file.stat().st_ctime + loaded_code.MARGIN - 0.001)
    with pytest.raises(Unkeyed, match="may have changed"):
        front_key(made, {})


@pytest.mark.integration
def test_another_process_finds_the_graph(shelf: Shelf) -> None:
    """The key depends on nothing of the process: neither its hash seed nor what else it imported."""
    code = (
        "import math, sys; sys.path[:0] = sys.argv[1:]\n"
        "import purifier, purifier.cli, sklearn\n"
        "from purifier.onnx import loaded_code; loaded_code.STARTED = math.inf\n"
        "from purifier.onnx.front_key import front_key\n"
        "from shade import Shade\n"
        "print([front_key(made, {}) for made in (Shade(), purifier.load('demo'), purifier.load('latent:base=demo'))])"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    mine = [front_key(made, {}) for made in (Shade(), purifier.load("demo"), purifier.load("latent:base=demo"))]
    assert done.stdout.strip() == str(mine), done.stderr
