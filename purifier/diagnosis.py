"""Diagnoses an installation: what is installed, what loads, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import onnxruntime
import torch

from .onnx.cache_folder import MAX_BYTES
from .onnx.front_cache import front_shelf
from .onnx.runtime import CPU, CUDA, POLICIES, chosen_by, installed_wheels, working_providers


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation."""

    versions: dict[str, str]
    """Name -> version of everything that a bug report should include."""
    cuda_device: str | None
    """The name of the CUDA device that torch uses; None if it uses none."""
    available: Sequence[str]
    """The providers that this ONNX Runtime was built with."""
    working: Sequence[str]
    """The available providers that load."""
    chosen: dict[str, str]
    """Policy -> the provider that ONNX Runtime chooses under it, or why a guarded session refuses it."""
    warnings: Sequence[str]
    """The problems and what to do about them, one sentence each; a command is on its own line."""
    cache: str = "off"
    """The folder with kept graphs of purifiers and how full it is, or why it is not used."""

    def missing(self, required: str) -> list[str]:
        """The parts of ``required`` that do not work: ``cuda`` (torch and ONNX Runtime), or the name of a provider."""
        wanted = {required: required in self.working}
        if required == "cuda":
            wanted = {"torch on CUDA": self.cuda_device is not None, CUDA: CUDA in self.working}
        return [name for name, works in wanted.items() if not works]


def diagnose() -> Diagnosis:
    """Examine the installation; every provider is tried with a session."""
    available, working = onnxruntime.get_available_providers(), working_providers()
    cuda = torch.cuda.is_available()
    return Diagnosis(
        versions=versions(),
        cuda_device=torch.cuda.get_device_name() if cuda else None,
        available=available,
        working=working,
        chosen={policy: chosen_by(policy) for policy in POLICIES},
        cache=describe_cache(),
        warnings=findings(
            wheels=installed_wheels(),
            available=available,
            working=working,
            torch_cuda=cuda,
            torch_build=torch.version.cuda,
        ),
    )


def describe_cache() -> str:
    """Where purifiers' graphs are kept, and how many; or why none are."""
    shelf = front_shelf()
    if shelf is None:
        return "off"
    if not os.path.lexists(shelf.folder):
        return f"{shelf.folder} (empty)"
    if not shelf.trusted():
        return f"{shelf.folder} is not used: it is not a folder that belongs to you and only you can write in"
    sizes = [status.st_size for _, status in shelf.files()]
    return f"{shelf.folder} ({len(sizes)} files, {sum(sizes) / 1e6:.1f} of at most {MAX_BYTES / 1e6:.0f} MB)"


def versions() -> dict[str, str]:
    """Name -> version of everything that a bug report should include."""
    found = {
        "purifier": importlib.metadata.version("adversarial-purifier"),
        "python": platform.python_version(),
    }
    found["platform"] = platform.platform()
    for name in ("torch", "torchvision", "onnx", "onnxscript"):
        found[name] = importlib.metadata.version(name)
    return {**found, **(installed_wheels() or {"onnxruntime": onnxruntime.__version__})}


def findings(
    *,
    wheels: dict[str, str],
    available: list[str],
    working: list[str],
    torch_cuda: bool,
    torch_build: str | None,
) -> list[str]:
    """The problems of an installation and what to do about them, one sentence each; a command is on its own line."""
    found = []
    if len(wheels) > 1:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "run\n  pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        )
    if CUDA in available and CUDA not in working:
        if torch_cuda:
            found.append(
                f"{CUDA} is built in but does not load, though torch uses CUDA {torch_build}: onnxruntime-gpu needs "
                "the same CUDA major version and cuDNN 9 (CUDA 13 since onnxruntime-gpu 1.27); sessions run on the "
                "CPU; run\n  pip install --upgrade onnxruntime-gpu torch"
            )
        else:
            found.append(
                f"{CUDA} is built in but does not load: torch finds no CUDA device either "
                + ("(is there a GPU, and does nvidia-smi see it?)" if torch_build else "(torch is a CPU build)")
                + "; sessions run on the CPU, which is fine unless you meant to use a GPU"
            )
    if torch_cuda and CUDA not in available:
        found.append(
            "torch uses CUDA, but this ONNX Runtime is a build without it; sessions run on the CPU; "
            "run\n  pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        )
    if CPU not in working:
        found.append("ONNX Runtime cannot even run on the CPU; run\n  pip install --force-reinstall onnxruntime-gpu")
    return found
