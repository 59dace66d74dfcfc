"""Every example runs, and the plugin package is the one that docs/plugins.md builds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

import purifier

EXAMPLES = Path(__file__).parents[1] / "examples"
PACKAGE = EXAMPLES / "plugin_package"
TUTORIAL = EXAMPLES.parent / "docs" / "plugins.md"


def run(*command: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def taught() -> dict[str, str]:
    """The files that the tutorial's blocks make."""
    files: dict[str, str] = {}
    for title, body in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', TUTORIAL.read_text(), flags=re.DOTALL):
        name, _, how = title.partition(" (")
        files[name] = files.get(name, "") + body if how else body
    return files


def test_the_plugin_package_is_the_tutorials() -> None:
    files = taught()
    package = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix in (".py", ".toml", ".md")]
    assert {str(path.relative_to(PACKAGE)) for path in package} <= set(files)
    assert all(path.read_text() == files[str(path.relative_to(PACKAGE))] for path in package)
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["purifier.purifiers"] == {"median": "purifier_median.median:Median"}


@pytest.mark.integration
def test_the_plugin_package_installs_and_its_own_tests_pass(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE, source)
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site, source)
    done = run(sys.executable, *install, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    done = run(*command, folder=source, PYTHONPATH=str(site))
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
    listed = run("purifier", "list", folder=tmp_path, PYTHONPATH=str(site)).stdout
    assert "purifier-median 0.1.0" in listed and "purifier_median.nudge:Nudge" in listed


@pytest.mark.integration
def test_guarding_a_torch_classifier(tmp_path: Path) -> None:
    done = run(sys.executable, EXAMPLES / "guard_torch.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    shares = [float(share) for share in re.findall(r"([\d.]+)%", done.stdout)]
    alone, guarded, flagged, noise = shares
    assert alone > 90 and guarded > 80 and flagged <= 6 and noise > 90


@pytest.mark.integration
def test_guarding_an_onnx_classifier(tmp_path: Path) -> None:
    done = run(sys.executable, EXAMPLES / "guard_onnx.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "same classes in plain onnxruntime: 100.0%" in done.stdout


@pytest.mark.integration
@pytest.mark.parametrize(("least", "code"), [("0.5", 0), ("0.99", 1)])
def test_the_gate_in_ci(least: str, code: int, tmp_path: Path) -> None:
    done = run("sh", EXAMPLES / "audit_in_ci" / "audit.sh", folder=tmp_path, FAIL_UNDER=least)
    assert done.returncode == code, done.stdout + done.stderr
    assert (tmp_path / "audited" / "report.json").is_file()


def test_the_server_in_the_docs_is_the_example() -> None:
    assert (EXAMPLES / "serve_litserve.py").read_text() in (EXAMPLES.parent / "docs" / "serving.md").read_text()


@pytest.mark.integration
def test_the_litserve_example_answers_requests_in_batches(tmp_path: Path) -> None:
    guarded = purifier.guard("demo", "demo")
    purifier.export(guarded, tmp_path / "guarded.onnx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, EXAMPLES / "serve_litserve.py", "guarded.onnx", "--port", port, "--accelerator", "cpu"]
    pixels, _ = purifier.load_data("demo:8").batch(range(8))
    expected = guarded(pixels).argmax(1).tolist()
    with subprocess.Popen([str(part) for part in command], cwd=tmp_path, start_new_session=True) as server:
        try:
            until(port, server, seconds=120)
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(partial(asked, port), pixels.tolist()))
            assert [answer["class"] for answer in found] == expected
            assert asked(port, (pixels[0] + 7).tolist()) == {"class": None, "logits": None}
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def until(port: int, server: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a server listens."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.5)
    raise AssertionError(f"the server does not listen, exit code {server.poll()}")


def asked(port: int, pixels: list[object]) -> dict[str, object]:
    """What the server answers to an image."""
    content = json.dumps({"pixels": pixels}).encode()
    request = Request(f"http://127.0.0.1:{port}/predict", content, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return dict(json.loads(answer.read()))
