"""The report as rich tables: the worst case on top, every attack and route of each threat, then detection."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..attacking.threat import Threat
from .detection import Detection
from .flags import FLAGS
from .presets import PROBED
from .report import WHITE_BOX, AuditReport, Row, WorstCase
from .statistics import Rate

LONGEST = 300
"""Of an error's text, in characters."""


def print_report(report: AuditReport, console: Console) -> None:
    """Print a report: undefended and guarded side by side, each figure with its 95% interval."""
    purifier = report.purifier
    origin = f" ({purifier['file']})" if purifier["file"] else ""
    console.print(
        f"[bold]{escape(report.classifier)}[/bold] behind [bold]{escape(purifier['plugin'] + origin)}[/bold] "
        f"on {report.data['count']} images of {escape(report.data['name'])}",
        emoji=False,  # else the :train: of a DATA spec becomes a picture
    )
    if report.worst_case:
        console.print(_worst_table(report))
    for threat in report.threats if report.worst_case else [None]:
        console.print(_rows_table(report, threat))
    console.print("attacked: how many images, and the gradients (g) or else queries (q) each of them took")
    if any(row.sequence for row in report.rows):
        console.print(
            "A row in a sequence (>) attacked what the rows above it left right, and says what remains; its detection "
            "is of the images it fooled itself."
        )
    if any(row.worst_of_n for row in report.rows):
        console.print(
            f"The purifier is random: figures are means over {report.judgements} judgements with fresh noise "
            f"(in brackets: right in all of them, in most of them), gradients means over {report.eot} draws."
        )
    _print_detection(report, console)
    for reason in report.left_out:
        console.print(f"left out: {reason}", style="dim", markup=False)
    print_doubts(report, console)


def print_doubts(report: AuditReport, console: Console) -> None:
    """Print what went wrong, and each flag with what to do about it; nothing for a report without doubt."""
    for row in report.rows:
        if row.error and row.model == "guarded":
            console.print(f"[red]error[/red] of {escape(row.attack)}, {row.route}: {escape(row.error[:LONGEST])}")
    if not report.complete:
        console.print("[bold red]incomplete[/bold red]: an attack errored, so the worst case is an upper bound only")
    for flag in report.flags:
        console.print(f"[bold red]flag {escape(flag.name)}[/bold red]: {escape(flag.evidence)}")
        if flag.name in FLAGS:  # a later version may know more
            kind = FLAGS[flag.name]
            console.print(f"  why: {escape(kind.why)}\n  what to do: {escape(kind.what_to_do)}")
    if report.probes < PROBED and report.worst_case:
        console.print(f"flags were looked for on at most {report.probes} images: fewer images show less")
    if report.flags:
        console.print("[bold red]inconclusive[/bold red]: robustness is at most what stands here, and may be far less")


def _worst_table(report: AuditReport) -> Table:
    table = _table("worst case per image, accuracy with 95% interval", ("threat", "over"))
    cases = {(case.threat, case.scope, case.model): case for case in report.worst_case}
    for threat, scope in dict.fromkeys((key[0], key[1]) for key in cases):
        alone, guarded = (cases.get((threat, scope, model)) for model in ("undefended", "guarded"))
        shown = guarded or alone
        assert shown is not None
        over = f"{'all routes run' if scope == 'all' else scope} ({', '.join(shown.routes)})"
        table.add_row(_threat(threat), over, _worst(alone), _worst(guarded), style="bold")
    return table


def _rows_table(report: AuditReport, threat: Threat | None) -> Table:
    table = _table(_threat(threat) if threat else "clean", ("attack", "route"))
    table.columns[0].max_width = 14  # so that all of it fits in 80 characters
    table.add_column("attacked", justify="right", min_width=8, no_wrap=True)
    rows = [row for row in report.rows if row.threat in (None, threat)]
    alone = {(row.attack, row.sequence): row for row in rows if row.model == "undefended"}
    sweeps = len({row.eot for row in rows if row.route in WHITE_BOX and row.model == "guarded"}) > 1
    guarded = [row for row in rows if row.model == "guarded"]
    for row in sorted(guarded, key=lambda row: row.sequence == "oblivious"):
        own = alone.get((row.attack, row.sequence and "oblivious"))
        table.add_row(
            _attack(row) + (f" (eot {row.eot})" if sweeps and row.route in WHITE_BOX else ""),
            _route(row, report),
            _figure(own) if own else "-",
            _figure(row),
            _cost(row),
        )
    return table


def _print_detection(report: AuditReport, console: Console) -> None:
    tested = [(row, row.detection) for row in report.rows if row.detection is not None]
    attacked = [(row, found) for row, found in tested if row.threat is not None]
    for threat in report.threats if attacked else []:
        rows = [(row, found) for row, found in attacked if row.threat == threat]
        console.print(_detection_table(report, threat, rows))
    if attacked:
        console.print(
            "detection: the purifier's score of fooled images (right when clean, wrong under the attack) against that "
            "of clean ones; an AUC of 0.5 tells nothing"
        )
        aimed = [row for row, _ in attacked if row.route in WHITE_BOX and row.scores_per_image > 0]
        exact = [row for row in aimed if row.route == "exact"]
        names = escape(", ".join(dict.fromkeys(row.attack for row in exact or aimed)))
        here = f"here: {names}" if exact else f"here along bpda only: {names}" if aimed else ""
        console.print(
            "A detector is judged by a joint attack on it and the classifier along the exact route; "
            + (here or "none here (add joint): these attacks did not aim at it")
        )
    if report.calibration is None:
        if attacked:
            console.print("threshold: not calibrated, nothing is rejected; `purifier calibrate` makes one")
        return
    given = report.calibration
    wrongly = next((found.rejected for row, found in tested if row.threat is None), None)
    console.print(
        f"threshold: calibrated to reject {100 * given['fpr']:.4g}% of clean images on {given['count']} images of "
        f"{escape(given['data'])}; here it rejects {_rate(wrongly) if wrongly else '-'} of the clean images",
        emoji=False,
    )


def _detection_table(report: AuditReport, threat: Threat, rows: list[tuple[Row, Detection]]) -> Table:
    table = _plain_table(f"detection, {_threat(threat)}", ("attack", "route"))  # a row has two lines anyway
    table.add_column("fooled", justify="right")
    table.add_column("AUC", justify="right", min_width=14)
    if report.calibration:
        table.add_column(f"rejected at\n{100 * report.calibration['fpr']:.4g}% FPR", justify="right", min_width=12)
        table.add_column("right or\nrejected", justify="right", min_width=12)
    for row, found in rows:
        area = found.auc
        cells = [f"{area.value:.3f}\n[{area.interval[0]:.3f}, {area.interval[1]:.3f}]" if area else "-"]
        for share in (found.rejected, found.held) if report.calibration else ():
            # The interval on a line of its own, so that six columns fit in 80 characters.
            cells.append(_rate(share).replace(" [", "\n[") if share else "-")
        table.add_row(_attack(row), _route(row, report), str(found.fooled), *cells)
    return table


def _table(title: str, names: tuple[str, str]) -> Table:
    table = _plain_table(title, names, whole=("threat", "route"))
    for name in ("undefended", "guarded"):
        table.add_column(name, justify="right", overflow="fold", min_width=18, max_width=18)
    return table


def _plain_table(title: str, names: tuple[str, str], whole: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name in whole)
    return table


def _cost(row: Row) -> str:
    """Images attacked, and on a line of its own what each took."""
    if row.threat is None:
        return "-"
    asked = f"{row.gradients_per_image:.0f} g" if row.gradients_per_image else f"{row.queries_per_image:.0f} q"
    return f"{row.attacked}\n{asked}"


def _attack(row: Row) -> str:
    return escape(f"> {row.attack}" if row.sequence else row.attack)


def _threat(threat: Threat) -> str:
    return f"{threat.norm} {threat.eps:.4g}"


def _route(row: Row, report: AuditReport) -> str:
    guessed = row.route == "bpda" and report.purifier["surrogate"] == "identity"
    return "bpda\n(identity)" if guessed else row.route or "-"


def _worst(case: WorstCase | None) -> str:
    if case is None:
        return "-"
    return _rate(case.result, case.worst_of_n, case.majority) + ("" if case.complete else " incomplete")


def _figure(row: Row) -> str:
    if row.result is None:
        return "[red]error, see below[/red]"
    return _rate(row.result, row.worst_of_n, row.majority)


def _rate(result: Rate, worst_of_n: Rate | None = None, majority: Rate | None = None) -> str:
    low, high = result.interval
    of_several = f"\n({worst_of_n.accuracy:.1%}, {majority.accuracy:.1%})" if worst_of_n and majority else ""
    return f"{result.accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]{of_several}"
