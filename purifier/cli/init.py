"""``purifier init``: write a commented purifier.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..atomic import atomic_write
from ..errors import OutputError
from .config import FILE, commented
from .console import plain_console

COMMANDS = ("audit", "certify", "train", "calibrate", "export", "bench")


def init(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The file to write.")] = FILE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a purifier.toml with every option of the commands, commented out."""
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; give another name with --out, or --overwrite to replace it", out)
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, typer.core.TyperGroup)
    commands = {name: one for name, one in group.commands.items() if isinstance(one, typer.core.TyperCommand)}
    atomic_write(out, commented(commands, COMMANDS))
    plain_console(soft_wrap=True).print(f"{out}: options of {', '.join(COMMANDS)}", markup=False)
