"""``purifier doctor``: what is installed, what really loads, and what to do where something does not."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Annotated

import onnxruntime
import torch
import typer

from ..errors import ConfigError
from ..onnx.runtime import CPU, CUDA, installed_wheels, working_providers
from .console import plain_console


def doctor(
    require: Annotated[
        str | None,
        typer.Option(
            help="Fail with exit code 1 unless this works: cuda (torch and ONNX Runtime), or an ONNX Runtime "
            "provider such as CUDAExecutionProvider.",
            metavar="WHAT",
        ),
    ] = None,
) -> None:
    """Show versions and the devices that really work, and say what to do about those that do not."""
    if require is not None and require != "cuda" and not require.endswith("ExecutionProvider"):
        raise ConfigError(f"--require: expected cuda or a provider such as {CUDA}, got {require!r}")
    console = plain_console()
    console.soft_wrap = not console.is_terminal  # what is piped keeps its lines, for grep
    available, working, wheels = (
        onnxruntime.get_available_providers(),
        working_providers(),
        installed_wheels(),
    )
    torch_cuda = torch.cuda.is_available()

    facts = {**versions(), "torch on CUDA": torch.cuda.get_device_name() if torch_cuda else "no"}
    facts |= {provider: "loads" if provider in working else "does not load" for provider in available}
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(f"{name:<{width}}  {fact}", markup=False)

    for advice in findings(
        wheels=wheels,
        available=available,
        working=working,
        torch_cuda=torch_cuda,
        torch_build=torch.version.cuda,
    ):
        console.print(f"warning: {advice}", markup=False)
    lacking = missing(require, working=working, torch_cuda=torch_cuda)
    if lacking:
        console.print(f"not to be had, but required: {', '.join(lacking)}", markup=False)
        raise typer.Exit(1)
    console.print("ready: " + ("CUDA" if torch_cuda and CUDA in working else "CPU"), markup=False)


def versions() -> dict[str, str]:
    """Name -> version of all that a bug report should say."""
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
    """What is wrong with an installation, and what to do, one sentence each; a command has its own line."""
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


def missing(require: str | None, *, working: list[str], torch_cuda: bool) -> list[str]:
    """Those parts of what ``--require`` names that do not work here."""
    if require is None:
        return []
    wanted = (
        {"torch on CUDA": torch_cuda, CUDA: CUDA in working} if require == "cuda" else {require: require in working}
    )
    return [name for name, works in wanted.items() if not works]
