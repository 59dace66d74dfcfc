"""The report as rich tables: the worst case on top, then every attack and route."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .report import AuditReport, Row, WorstCase
from .statistics import Rate


def print_report(report: AuditReport, console: Console) -> None:
    """Print a report: undefended and guarded side by side, each figure with its 95% interval."""
    purifier = report.purifier
    origin = f" ({purifier['file']})" if purifier["file"] else ""
    console.print(
        f"[bold]{escape(report.classifier)}[/bold] behind [bold]{escape(purifier['plugin'] + origin)}[/bold] "
        f"on {report.data['count']} images of {escape(report.data['name'])}"
    )
    if report.worst_case:
        console.print(_worst_table(report))
    console.print(_rows_table(report))
    if any(row.worst_of_n for row in report.rows):
        console.print(
            f"The purifier is random: figures are means over {report.judgements} judgements with fresh noise "
            f"(in brackets: right in all), gradients means over {report.eot} draws."
        )
    if not report.complete:
        console.print("[bold red]incomplete[/bold red]: an attack errored, so the worst case is an upper bound only")


def _worst_table(report: AuditReport) -> Table:
    table = Table(title="worst case per image, accuracy with 95% interval", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("threat", "over", "undefended", "guarded"):
        table.add_column(name, justify="right" if name in ("undefended", "guarded") else "left")
    cases = {(str(case.threat), case.scope, case.model): case for case in report.worst_case}
    for threat, scope in dict.fromkeys((key[0], key[1]) for key in cases):
        alone, guarded = (cases.get((threat, scope, model)) for model in ("undefended", "guarded"))
        shown = guarded or alone
        assert shown is not None
        routes = ", ".join(shown.routes)
        over = f"all routes ({routes})" if scope == "all" else f"white-box ({routes})"
        table.add_row(threat, over, _worst(alone), _worst(guarded), style="bold")
    return table


def _rows_table(report: AuditReport) -> Table:
    table = Table(title="every attack and route", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("threat", "attack", "route", "undefended", "guarded", "gradients/image", "seconds"):
        table.add_column(name, justify="left" if name in ("threat", "attack", "route") else "right")
    alone = {(row.attack, row.threat): row for row in report.rows if row.model == "undefended"}
    for row in report.rows:
        if row.model == "guarded":
            table.add_row(
                str(row.threat or "-"),
                escape(row.attack),
                row.route or "-",
                _figure(alone[row.attack, row.threat]),
                _figure(row),
                f"{row.gradients_per_image:.1f}",
                f"{row.seconds:.1f}",
            )
    return table


def _worst(case: WorstCase | None) -> str:
    if case is None:
        return "-"
    return _rate(case.result, case.worst_of_n) + ("" if case.complete else " incomplete")


def _figure(row: Row) -> str:
    if row.result is None:
        return f"[red]error: {escape(row.error or '')}[/red]"
    return _rate(row.result, row.worst_of_n)


def _rate(result: Rate, worst_of_n: Rate | None) -> str:
    low, high = result.interval
    always = f" ({worst_of_n.accuracy:.1%})" if worst_of_n else ""
    return f"{result.accuracy:.1%} {low:.1%} - {high:.1%}{always}"
