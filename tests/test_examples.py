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
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

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


def workflow() -> dict[str, Any]:
    """The job of the GitHub Action."""
    found = yaml.safe_load((EXAMPLES / "audit_in_ci" / "robustness.yml").read_text())
    assert found["permissions"] == {"contents": "read", "security-events": "write"}
    (job,) = found["jobs"].values()
    return dict(job)


def steps() -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in workflow()["steps"] if "name" in step}


def test_the_github_action_uploads_what_it_writes() -> None:
    job, named = workflow(), steps()
    assert list(named) == ["Install", "Audit", "Write reports", "Upload the audit", "Upload SARIF to code scanning"]
    assert all(re.fullmatch(r"[\w/-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    written = re.findall(r"--out (\S+)", named["Write reports"]["run"])
    assert written == ["audited/report.html", "audited/junit.xml", "audited/audit.sarif"]
    assert named["Upload the audit"]["with"]["path"] == "audited"
    assert named["Upload SARIF to code scanning"]["with"]["sarif_file"] in written
    used = set(re.findall(r"\$(\w+)", named["Audit"]["run"] + named["Write reports"]["run"]))
    assert used == {*job["env"], "GITHUB_STEP_SUMMARY"}


@pytest.mark.integration
def test_the_github_action_runs_up_to_its_uploads(tmp_path: Path) -> None:
    audit, write = (steps()[name]["run"] for name in ("Audit", "Write reports"))
    demo = {"CLASSIFIER": "demo", "PURIFIER": "demo", "DATA": "demo:20", "EPS": "0.05"}
    summary = tmp_path / "summary.md"
    environment = {**workflow()["env"], **demo, "GATES": "--fail-under 0.3", "GITHUB_STEP_SUMMARY": str(summary)}
    shell = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")  # as GitHub runs a step
    done = run(*shell, audit, folder=tmp_path, **environment)
    assert done.returncode == 0 and "gate passed, linf 0.05" in done.stdout, done.stdout + done.stderr
    (tmp_path / "audited").rename(tmp_path / "baseline")
    worse = {**environment, "PURIFIER": "demo-plain", "GATES": "--fail-under 0 --baseline baseline --tolerance 0.2"}
    done = run(*shell, audit, folder=tmp_path, **worse)
    assert done.returncode == 1 and "gate failed, linf 0.05" in done.stdout, done.stdout + done.stderr
    done = run(*shell, write, folder=tmp_path, **worse)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Gate missed: " in (tmp_path / "audited" / "report.html").read_text()
    assert 'type="baseline"' in (tmp_path / "audited" / "junit.xml").read_text()
    assert json.loads((tmp_path / "audited" / "audit.sarif").read_text())["runs"][0]["results"]
    assert "Gate missed: " in summary.read_text()


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
            for bad in (pixels[0] + 7, pixels[0][:, 1:], pixels[0] * float("nan")):
                assert asked(port, bad.tolist()) == {"class": None, "logits": None}
            for wrong in ([[[0.5], [0.5, 0.5]]], "photo", None):
                with pytest.raises(HTTPError, match="422"):
                    asked(port, wrong)
            assert asked(port, pixels[0].tolist())["class"] == expected[0]
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


def asked(port: int, pixels: object) -> dict[str, object]:
    """What the server answers to an image."""
    content = json.dumps({"pixels": pixels}).encode()
    request = Request(f"http://127.0.0.1:{port}/predict", content, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return dict(json.loads(answer.read()))
