"""``purifier report``: show a finished audit again, in several formats, compare two, and merge shards."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..atomic import atomic_write
from ..errors import FileError
from .console import plain_console, result_console
from .examples import examples_of
from .merge import merge, print_whole

if TYPE_CHECKING:
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


@report.command(SHOW, epilog=examples_of(SHOW))
def show(
    path: Annotated[Path, typer.Argument(metavar="FILE", help=FILE)],
    to: Annotated[
        Literal["text", "html", "md", "junit", "sarif", "csv", "evidence", "json"],
        typer.Option(
            help="text: tables for the terminal; html: one page for people; md: Markdown; junit and sarif: for CI; "
            "csv: all figures; evidence: a sheet for reviewers, in Markdown; json: report.json in today's schema."
        ),
    ] = "text",
    out: Annotated[Path | None, typer.Option(help="File to write (default: standard output).")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE|NAME=SHARE",
            help="Say in html, md, junit and sarif whether a gate is met, as in audit; may be repeated. The exit code "
            "stays 0.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Say in html, md, junit and sarif whether fewer images are right than in this earlier audit.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="With --baseline: by how large a share of images the results may be worse (default: 0.02)."),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="File with names to show for the classes in html, line K from 0 for class K."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="With --out: print nothing but errors.")] = False,
) -> None:
    """Show an audit's report.json, for example `purifier report show audited --to html --out report.html`."""
    from ..auditing.report import AuditReport
    from ..data.folders import read_classes
    from ..reporting.formats import render
    from .gates import compared_with, read_gate

    gates = [read_gate(one) for one in fail_under or ()]
    against = compared_with(baseline, tolerance)
    names = None if class_names is None else read_classes(class_names)
    found = AuditReport.load(path)
    try:
        if to == "text":
            text = _as_text(found, out)
        elif to == "json":
            text = found.to_json()
        else:
            text = render(found, to, gates=gates, baseline=against, class_names=names)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FileError(f"{path} is not a complete report ({error!r}); run the audit again", path) from error
    if out is not None:
        atomic_write(out, text)
        result_console(quiet=quiet, stderr=True).print(f"wrote {out}", markup=False, soft_wrap=True)
    elif text:
        plain_console().out(text, end="", highlight=False)


@report.command("diff", epilog=examples_of("diff"))
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help=FILE)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help=FILE)],
) -> None:
    """Print what changed from one audit to another: what was audited, every figure, and the flags."""
    from ..auditing.report import AuditReport
    from ..reporting.difference import difference, print_difference

    before, after = AuditReport.load(old), AuditReport.load(new)
    print_difference(difference(before, after), plain_console())


report.command("merge", epilog=examples_of("merge"))(merge)


@report.command("schema", epilog=examples_of("schema"))
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
