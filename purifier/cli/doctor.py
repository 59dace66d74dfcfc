"""``purifier doctor``: show what is installed, what works, and what to do about the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigError
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
    """Show versions and which devices work, and what to do about those that do not."""
    if require is not None and require != "cuda" and not require.endswith("ExecutionProvider"):
        raise ConfigError(f"--require: expected cuda or a provider such as CUDAExecutionProvider, got {require!r}")
    from ..diagnosis import diagnose

    console = plain_console()
    console.soft_wrap = not console.is_terminal  # piped output keeps its lines, for grep
    found = diagnose()
    facts = {**found.versions, "torch on CUDA": found.cuda_device or "no"}
    facts |= {provider: "loads" if provider in found.working else "does not load" for provider in found.available}
    facts |= {f"providers={policy}": provider for policy, provider in found.chosen.items()}
    facts["cache"] = found.cache
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(f"{name:<{width}}  {fact}", markup=False)
    for advice in found.warnings:
        console.print(f"warning: {advice}", markup=False)
    missing = [] if require is None else found.missing(require)
    if missing:
        console.print(f"required but unavailable: {', '.join(missing)}", markup=False)
        raise typer.Exit(1)
    console.print("ready: " + ("CPU" if found.missing("cuda") else "CUDA"), markup=False)
