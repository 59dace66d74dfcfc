"""``purifier demo``: audit and export the shipped models, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import plain_console


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the files that the demo writes.")] = Path("purifier-demo"),
    eps: Annotated[float, typer.Option(help="Budget of the linf attack in pixel units, 0 to 1.")] = 0.1,
) -> None:
    """Attack a shipped Fashion-MNIST classifier, alone and behind two shipped VAEs, and export the better guard."""
    from .demonstration import demonstrate

    demonstrate(out, eps, plain_console(soft_wrap=True))
