"""``purifier report``: print a finished audit again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import FileError
from .console import plain_console


def report(path: Annotated[Path, typer.Argument(help="report.json, or the folder that holds it.")]) -> None:
    """Print the tables of an audit's report.json."""
    from ..auditing.report import AuditReport
    from ..auditing.table import print_report

    found = AuditReport.load(path)
    console = plain_console()
    try:
        print_report(found, console)
        if found.command is not None:
            if not isinstance(found.command, list) or not all(isinstance(word, str) for word in found.command):
                raise TypeError(f"command: expected a list of words, got {found.command!r}")
            console.print(f"made by {shlex.join(found.command)}", markup=False, soft_wrap=True)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FileError(f"{path} is not a complete report ({error!r}); run the audit again", path) from error
