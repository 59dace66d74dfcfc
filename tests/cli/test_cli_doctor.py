from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import pytest

from purifier import diagnosis
from purifier.diagnosis import Diagnosis, findings
from purifier.onnx.cache_folder import Shelf
from purifier.onnx.runtime import CPU, CUDA, working_providers

Command = Callable[..., tuple[int, str, str]]
WHEEL = {"onnxruntime-gpu": "1.31.1"}


def test_the_doctor_shows_versions_and_providers(command: Command) -> None:
    code, shown, _ = command("doctor")
    assert code == 0
    for name in ("torch", "torchvision", "onnx"):
        assert version(name) in shown
    assert version("adversarial-purifier") in shown
    assert CPU in shown
    assert re.search(f"^providers=prefer-cpu +{CPU}$", shown, re.MULTILINE) and "providers=prefer-gpu" in shown
    assert "ready: " in shown


def test_the_doctor_shows_the_cache(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PURIFIER_CACHE", str(tmp_path))
    folder = tmp_path / "fronts"
    assert f"{folder} (empty)" in command("doctor")[1]
    Shelf(folder).write("one", bytes(1_500_000))
    assert f"{folder} (1 files, 1.5 of at most 500 MB)" in command("doctor")[1]
    folder.chmod(0o777)
    assert "is not used" in command("doctor")[1] or os.name != "posix"
    monkeypatch.setenv("PURIFIER_CACHE", "0")
    assert re.search(r"^cache +off$", command("doctor")[1], re.MULTILINE)


def unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA is built in and does not load, and both wheels are there: the two longest warnings."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(diagnosis, "working_providers", lambda: [CPU])
    monkeypatch.setattr(diagnosis, "installed_wheels", lambda: {**WHEEL, "onnxruntime": "1.31.1"})


def test_output_fits_80_columns_without_broken_words(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    unhealthy(monkeypatch)
    monkeypatch.setattr(platform, "platform", lambda: "Linux-6.1.0-amd64-x86_64-with-glibc2.36")
    _, piped, _ = command("doctor")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    _, shown, _ = command("doctor")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(map(len, shown.splitlines())) <= 80 < max(map(len, piped.splitlines()))
    assert shown.split() == piped.split()
    command_line = "  pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert command_line in shown.splitlines() and command_line in piped.splitlines()


def test_an_available_requirement_passes(command: Command) -> None:
    assert command("doctor", "--require", CPU)[0] == 0


def test_cuda_required_but_unavailable_is_exit_code_1(command: Command) -> None:
    if CUDA in working_providers():
        pytest.skip("CUDA loads here")
    code, shown, _ = command("doctor", "--require", "cuda")
    assert code == 1
    assert CUDA in shown.splitlines()[-1]
    assert "required" in shown.splitlines()[-1]


def test_an_unknown_requirement_is_exit_code_2(command: Command) -> None:
    code, _, errors = command("doctor", "--require", "abacus")
    assert code == 2
    assert "error: --require: expected cuda or a provider such as CUDAExecutionProvider, got 'abacus'" in errors


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        ({}, []),
        ({"wheels": {**WHEEL, "onnxruntime": "1.31.1"}}, ["both installed"]),
        (
            {"available": [CUDA, CPU], "torch_cuda": True, "torch_build": "13.0"},
            ["does not load, though torch uses CUDA 13.0"],
        ),
        ({"available": [CUDA, CPU], "torch_build": "13.0"}, ["nvidia-smi"]),
        ({"available": [CUDA, CPU]}, ["torch is a CPU build"]),
        ({"available": [CUDA, CPU], "working": [CUDA, CPU], "torch_cuda": True}, []),
        ({"torch_cuda": True}, ["is a build without it"]),
        ({"working": []}, ["cannot even run on the CPU"]),
    ],
)
def test_each_problem_comes_with_advice(facts: dict[str, object], advice: list[str]) -> None:
    healthy = {"wheels": WHEEL, "available": [CPU], "working": [CPU], "torch_cuda": False, "torch_build": None}
    found = findings(**{**healthy, **facts})  # type: ignore[arg-type]
    assert len(found) == len(advice)
    assert all(part in sentence for part, sentence in zip(advice, found, strict=True))


def test_cuda_means_torch_and_onnxruntime() -> None:
    def found(device: str | None, *working: str) -> Diagnosis:
        return Diagnosis({}, device, [CUDA, CPU], working, {}, [])

    assert found("H200", CPU).missing("cuda") == [CUDA]
    assert found(None, CUDA, CPU).missing("cuda") == ["torch on CUDA"]
    assert found("H200", CUDA, CPU).missing("cuda") == []
    assert found(None).missing(CPU) == [CPU]
