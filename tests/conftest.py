"""Shared by all tests: real Fashion-MNIST images, and the command line in this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the workers, and what they start, share the cores; torch asks once
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import torch


def pytest_configure(config: pytest.Config) -> None:
    """No test may see or touch the user's own cache; xdist's workers and all other processes inherit the folder."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.mkdtemp(prefix="purifier-tests-")
        os.environ["PURIFIER_CACHE"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Share data files and exported purifiers between tests, see ``session_caches``; integration tests do without."""
    import session_caches

    if request.config.option.markexpr == "integration":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        session_caches.install(patch)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One order of summation, and no waiting for a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fashion():
    """Real Fashion-MNIST test images."""
    from purifier.data.loading import load_data

    return load_data("fashion-mnist:test")


@pytest.fixture(scope="session")
def images(fashion) -> tuple[torch.Tensor, torch.Tensor]:
    """The first 64 real test images (64, 1, 28, 28) and their labels."""
    return fashion.batch(range(64))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: (exit code, standard output, standard error)."""
    from purifier.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def queries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ONNX model has gradients: torch computes none of them."""
    from purifier.classifiers.pixel_classifier import OnnxPixelClassifier

    monkeypatch.setattr(OnnxPixelClassifier, "_compared", lambda *_: (None, "no support for the operator Sorcery"))
