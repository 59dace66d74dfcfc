"""``purifier report merge``: one report of the shards of an audit."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..atomic import check_writable
from ..errors import OutputError
from .console import plain_console

if TYPE_CHECKING:
    from rich.console import Console

    from ..auditing.report import AuditReport


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="The folders that `purifier audit --shard K/N --out` wrote to."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.json and the files beside it.")],
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="SHARE|NAME=SHARE", help="Gates, as for `purifier audit`. May be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the report of an earlier audit.")] = False,
) -> None:
    """Make one report of the shards of an audit; neither classifier nor data need be there."""
    from ..auditing.gates import look
    from ..auditing.report import FILE_NAME
    from ..auditing.shards import merge_audits
    from .gates import end, read_gate

    path, gates = out / FILE_NAME, [read_gate(text) for text in fail_under or ()]
    check_writable(out)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; replace it by --overwrite, or choose another --out", path)
    found = merge_audits(folders)
    found = dataclasses.replace(found, command=_with_out(found.command, out))
    look(found, gates)  # so that a wrong gate is an error before anything is written
    found.save(out)
    console = plain_console()
    print_whole(found, console)
    console.print(f"report {path}", markup=False, soft_wrap=True)
    end(found, gates, None, console)


def _with_out(command: Sequence[str] | None, out: Path) -> Sequence[str] | None:
    """The command of one shard, for all of them."""
    if command is None or "--out" not in command:
        return command
    at = list(command).index("--out") + 1
    return [*command[:at], str(out), *command[at + 1 :]]


def print_whole(found: AuditReport, console: Console) -> None:
    """Print the tables, and the command that made the report."""
    from ..auditing.table import print_report

    print_report(found, console)
    if found.command is not None:
        console.print(f"made by {shlex.join(found.command)}", markup=False, soft_wrap=True)
