"""``purifier report``: show a finished audit again, in several formats, compare two, and merge shards."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..atomic import atomic_write, check_writable
from ..errors import FileError, OutputError
from .console import plain_console

if TYPE_CHECKING:
    from rich.console import Console

    from ..auditing.report import AuditReport

SHOW = "show"
FILE = "report.json, or the folder that holds it."


class ReportGroup(typer.core.TyperGroup):
    """``purifier report FILE`` is short for ``purifier report show FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``show`` before what is neither a command nor a request for help."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [SHOW, *args]
        return super().parse_args(ctx, args)


report = typer.Typer(cls=ReportGroup)


@report.callback()
def about() -> None:
    """Show a finished audit again, compare two, or merge shards; `report FILE` is short for `report show FILE`."""


@report.command(SHOW)
def show(
    path: Annotated[Path, typer.Argument(metavar="FILE", help=FILE)],
    to: Annotated[
        Literal["text", "html", "md", "junit", "sarif", "csv", "evidence"],
        typer.Option(
            help="text: tables for the terminal; html: one page for people; md: Markdown; junit and sarif: for CI; "
            "csv: all figures; evidence: a sheet for reviewers, in Markdown."
        ),
    ] = "text",
    out: Annotated[Path | None, typer.Option(help="File to write (default: standard output).")] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            help="Name worst cases whose 95% interval reaches below this share, in html, md, junit and sarif. The exit "
            "code stays 0."
        ),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="File with names to show for the classes in html, line K from 0 for class K."),
    ] = None,
) -> None:
    """Show an audit's report.json, for example `purifier report show audited --to html --out report.html`."""
    from ..auditing.report import AuditReport, check_gate
    from ..data.folders import read_classes
    from ..reporting.formats import render

    if fail_under is not None:
        check_gate(fail_under, "--fail-under")
    names = None if class_names is None else read_classes(class_names)
    found = AuditReport.load(path)
    try:
        text = _as_text(found, out) if to == "text" else render(found, to, least=fail_under, class_names=names)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FileError(f"{path} is not a complete report ({error!r}); run the audit again", path) from error
    if out is not None:
        atomic_write(out, text)
        plain_console(stderr=True, soft_wrap=True).print(f"wrote {out}", markup=False)
    elif text:
        plain_console().out(text, end="", highlight=False)


@report.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help=FILE)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help=FILE)],
) -> None:
    """Print what changed from one audit to another: what was audited, every figure, and the flags."""
    from ..auditing.report import AuditReport
    from ..reporting.difference import difference, print_difference

    before, after = AuditReport.load(old), AuditReport.load(new)
    print_difference(difference(before, after), plain_console())


@report.command("merge")
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
    from ..auditing import shards
    from ..auditing.report import FILE_NAME
    from .gates import end, read_gate

    gates = [read_gate(text) for text in fail_under or ()]
    check_writable(out)
    if (out / FILE_NAME).exists() and not overwrite:
        raise OutputError(
            f"{out / FILE_NAME} exists; replace it by --overwrite, or choose another --out", out / FILE_NAME
        )
    found = shards.merge_audits(folders)
    found.save(out)
    console = plain_console()
    print_whole(found, console)
    console.print(f"report {out / FILE_NAME}", markup=False, soft_wrap=True)
    end(found, gates, None, console)


@report.command("schema")
def schema() -> None:
    """Print the JSON Schema of report.json."""
    from ..reporting.schema import schema_text

    sys.stdout.write(schema_text())


def _as_text(found: AuditReport, out: Path | None) -> str:
    """Print the tables; for a file, return them instead."""
    console = plain_console()
    with nullcontext() if out is None else console.capture() as captured:
        print_whole(found, console)
    return "" if captured is None else captured.get()


def print_whole(found: AuditReport, console: Console) -> None:
    """Print the tables, and the command that made the report."""
    from ..auditing.table import print_report

    print_report(found, console)
    if found.command is not None:
        console.print(f"made by {shlex.join(found.command)}", markup=False, soft_wrap=True)
