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
"""The largest number of characters of an error message that are printed."""


def print_report(report: AuditReport, console: Console) -> None:
    """Print a report: undefended and guarded side by side, each accuracy with its 95% interval."""
    console.print(
        f"[bold]{escape(report.classifier['description'])}[/bold] {_behind(report)} "
        f"on {report.data['count']} images of {escape(report.data['name'])}",
        emoji=False,  # otherwise the :train: of a DATA spec becomes an emoji
    )
    if report.worst_case:
        console.print(_worst_table(report))
    for threat in report.threats if report.worst_case else [None]:
        console.print(_rows_table(report, threat))
    console.print("attacked: number of images attacked, and gradients (g) or queries (q) per image")
    if any(row.sequence for row in report.rows):
        console.print(
            "A row marked > is part of a sequence: it attacked only the images that the rows above left right, and "
            "shows the accuracy that remains. Its detection covers only the images that it fooled itself."
        )
    if any(row.worst_of_n for row in report.rows):
        console.print(
            f"The purifier is random: accuracies are means over {report.judgements} judgements with fresh noise "
            f"(in brackets: right in all, right in most), gradients are means over {report.eot} draws."
        )
    _print_detection(report, console)
    for reason in report.left_out:
        console.print(f"left out: {reason}", style="dim", markup=False)
    print_doubts(report, console)


def _behind(report: AuditReport) -> str:
    """What stands before the classifier, as markup."""
    if report.purifier is None:
        return "alone"
    origin = f" ({report.purifier['file']})" if report.purifier["file"] else ""
    rejects = "" if report.on_reject in (None, "ignore") else f" that rejects images (on_reject={report.on_reject})"
    return f"behind [bold]{escape(report.purifier['plugin'] + origin)}[/bold]{rejects}"


def print_doubts(report: AuditReport, console: Console) -> None:
    """Print errors and flags, and what to do about each flag; print nothing if there are none."""
    for row in report.rows:
        if row.error and row.model == "guarded":
            console.print(f"[red]error[/red] in {escape(row.attack)}, {row.route}: {escape(row.error[:LONGEST])}")
    if not report.complete:
        console.print("[bold red]incomplete[/bold red]: an attack failed, so the worst case is only an upper bound")
    for flag in report.flags:
        console.print(f"[bold red]flag {escape(flag.name)}[/bold red]: {escape(flag.evidence)}")
        if flag.name in FLAGS:  # a later version may have written a flag unknown here
            kind = FLAGS[flag.name]
            console.print(f"  why: {escape(kind.why)}\n  what to do: {escape(kind.what_to_do)}")
    if report.probes < PROBED and report.worst_case:
        console.print(f"flags were looked for on at most {report.probes} images; more images can show more")
    if report.flags:
        console.print("[bold red]inconclusive[/bold red]: robustness is at most as shown here, and may be far less")


def _worst_table(report: AuditReport) -> Table:
    table = _table("worst case per image, accuracy with 95% interval", ("threat", "routes"))
    cases = {(case.threat, case.scope, case.model): case for case in report.worst_case}
    for threat, scope in dict.fromkeys((key[0], key[1]) for key in cases):
        alone, guarded = (cases.get((threat, scope, model)) for model in ("undefended", "guarded"))
        shown = guarded or alone
        assert shown is not None
        routes = f"{'all routes run' if scope == 'all' else scope} ({', '.join(shown.routes)})"
        table.add_row(_threat(threat), routes, _worst(alone), _worst(guarded), style="bold")
    return table


def _rows_table(report: AuditReport, threat: Threat | None) -> Table:
    table = _table(_threat(threat) if threat else "clean", ("attack", "route"))
    table.columns[0].max_width = 14  # so that the table fits in 80 characters
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
    detections = [(row, row.detection) for row in report.rows if row.detection is not None]
    attacked = [(row, found) for row, found in detections if row.threat is not None]
    for threat in report.threats if attacked else []:
        rows = [(row, found) for row, found in attacked if row.threat == threat]
        console.print(_detection_table(report, threat, rows))
    if attacked:
        console.print(
            "detection: how well the purifier's score separates fooled images (right when clean, wrong under the "
            "attack) from clean ones; an AUC of 0.5 means not at all"
        )
        joint = [row for row, _ in attacked if row.route in WHITE_BOX and row.scores_per_image > 0]
        exact = [row for row in joint if row.route == "exact"]
        names = escape(", ".join(dict.fromkeys(row.attack for row in exact or joint)))
        here = f"here: {names}" if exact else f"here along bpda only: {names}" if joint else ""
        console.print(
            "A detector must be tested by a joint attack on it and the classifier along the exact route; "
            + (here or "none here (add joint), so these attacks did not try to evade it")
        )
    if report.calibration is None:
        if attacked:
            console.print("threshold: not calibrated, so nothing is rejected; `purifier calibrate` finds one")
        return
    calibration = report.calibration
    false_positives = next((found.rejected for row, found in detections if row.threat is None), None)
    console.print(
        f"threshold: calibrated on {calibration['count']} images of {escape(calibration['data'])} to reject "
        f"{100 * calibration['fpr']:.4g}% of clean images; here it rejects "
        f"{_rate(false_positives) if false_positives else '-'} of the clean images",
        emoji=False,
    )


def _detection_table(report: AuditReport, threat: Threat, rows: list[tuple[Row, Detection]]) -> Table:
    table = _plain_table(f"detection, {_threat(threat)}", ("attack", "route"))  # may wrap: rows have two lines anyway
    table.add_column("fooled", justify="right")
    table.add_column("AUC", justify="right", min_width=14)
    if report.calibration:
        table.add_column(f"rejected at\n{100 * report.calibration['fpr']:.4g}% FPR", justify="right", min_width=12)
        table.add_column("right or\nrejected", justify="right", min_width=12)
    for row, found in rows:
        area = found.auc
        cells = [f"{area.value:.3f}\n[{area.interval[0]:.3f}, {area.interval[1]:.3f}]" if area else "-"]
        for share in (found.rejected, found.held) if report.calibration else ():
            # The interval is on its own line, so that six columns fit in 80 characters.
            cells.append(_rate(share).replace(" [", "\n[") if share else "-")
        table.add_row(_attack(row), _route(row, report), str(found.fooled), *cells)
    return table


def _table(title: str, names: tuple[str, str]) -> Table:
    table = _plain_table(title, names, unbroken=("threat", "route"))
    for name in ("undefended", "guarded"):
        table.add_column(name, justify="right", overflow="fold", min_width=18, max_width=18)
    return table


def _plain_table(title: str, names: tuple[str, str], unbroken: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name in unbroken)
    return table


def _cost(row: Row) -> str:
    """The number of images attacked, and on the next line the cost per image."""
    if row.threat is None:
        return "-"
    cost = f"{row.gradients_per_image:.0f} g" if row.gradients_per_image else f"{row.queries_per_image:.0f} q"
    return f"{row.attacked}\n{cost}"


def _attack(row: Row) -> str:
    return escape(f"> {row.attack}" if row.sequence else row.attack)


def _threat(threat: Threat) -> str:
    return f"{threat.norm} {threat.eps:.4g}"


def _route(row: Row, report: AuditReport) -> str:
    is_identity = row.route == "bpda" and report.purifier is not None and report.purifier["surrogate"] == "identity"
    return "bpda\n(identity)" if is_identity else row.route or "-"


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
    judgements = f"\n({worst_of_n.accuracy:.1%}, {majority.accuracy:.1%})" if worst_of_n and majority else ""
    return f"{result.accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]{judgements}"
