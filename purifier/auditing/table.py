"""The printed report: what was audited, the worst case, every attack and route of each threat, then detection."""

from __future__ import annotations

from rich.console import Console

from ..attacking.threat import Threat
from .detection_table import print_detection
from .figures import attack_text, cost_text, count_text, rate_text, result_text, route_text, sweeps, threat_text
from .flags import FLAGS
from .heading import heading
from .layout import SPEC_PARTS, WORDS, Column, Sheet, print_pairs, say
from .presets import PROBED
from .report import WHITE_BOX, AuditReport, Row, WorstCase

LONGEST = 300
"""The largest number of characters of an error message that are printed."""


def print_report(report: AuditReport, console: Console) -> None:
    """Print a report: undefended and guarded side by side, each accuracy with its 95% interval."""
    print_pairs(console, heading(report))
    if report.worst_case:
        _worst_table(report).print(console)
    for threat in report.threats if report.worst_case else [None]:
        _rows_table(report, threat).print(console)
    for note in _notes(report):
        say(console, note)
    print_detection(report, console)
    for reason in report.left_out:
        say(console, f"left out: {reason}", style="dim")
    print_doubts(report, console)


def print_doubts(report: AuditReport, console: Console) -> None:
    """Print errors and flags, and what to do about each flag; print nothing if there are none."""
    for attack, error in _errors(report).items():
        say(console, f" in {attack}: {error}", lead="error", lead_style="red")
    if not report.complete:
        text = ": an attack failed, so the worst case is only an upper bound"
        say(console, text, lead="incomplete", lead_style="bold red")
    for flag in report.flags:
        say(console, f": {flag.evidence}", lead=f"flag {flag.name}", lead_style="bold red")
        if flag.name in FLAGS:  # a later version may have written a flag unknown here
            kind = FLAGS[flag.name]
            say(console, f"  why: {kind.why}\n  what to do: {kind.what_to_do}")
    if report.gradient_check == "float64":
        say(console, "gradients were compared with finite differences in float64")
    elif report.gradient_check == "float32":
        say(
            console,
            "gradients were compared with finite differences in float32 only, where only gross errors show: the models "
            "do not run in float64",
        )
    if report.probes == 0 and report.partial is None:
        say(console, "flags were not looked for: the report is older than they are")
    elif 0 < report.probes < PROBED and report.worst_case:
        say(console, f"flags were looked for on at most {count_text(report.probes)}; more images can show more")
    if report.partial is not None:
        text = f": {report.partial}; it has no verdict, and flags were not looked for"
        say(console, text, lead="partial", lead_style="bold red")
    if report.flags:
        text = ": robustness is at most as shown here, and may be far less"
        say(console, text, lead="inconclusive", lead_style="bold red")


def _errors(report: AuditReport) -> dict[str, str]:
    """Attack, route and threat -> error; an oblivious attack's error is that of two rows, and is named once."""
    found: dict[str, str] = {}
    guarded = {(row.attack, row.threat, row.error) for row in report.rows if row.route == "oblivious"}
    for row in report.rows:
        if row.error and (row.model == "guarded" or (row.attack, row.threat, row.error) not in guarded):
            alone = "" if row.model == report.model else " on the undefended classifier"
            threat = f", {row.threat}" if row.threat and len(report.threats) > 1 else ""
            found[f"{row.attack}, {row.route}{threat}{alone}"] = row.error[:LONGEST]
    return found


def _result_name(report: AuditReport) -> str:
    """The name of the column with the results of the audited model."""
    if report.rejects:
        return f"{report.right} or\nrejected"
    return _share(report) if report.model == "undefended" else "guarded"


def _share(report: AuditReport) -> str:
    """What the share of images is that count as right."""
    return "agreement" if report.agreement else "accuracy"


def _worst_table(report: AuditReport) -> Sheet:
    both = report.model == "guarded"
    columns = [
        Column("threat", heading=True),
        Column("routes", heading=True, breaks=WORDS),
        *([Column("undefended")] if both else []),
        Column(_result_name(report)),
    ]
    counted = "share of images" if report.rejects else _share(report)
    by = ", by queries only" if report.classifier.get("queries_only") else ""
    sheet = Sheet(f"worst case per image{by}, {counted} with 95% interval", columns, style="bold")
    cases = {(case.threat, case.scope, case.model): case for case in report.worst_case}
    for threat, scope in dict.fromkeys((key[0], key[1]) for key in cases):
        own, alone = (cases.get((threat, scope, model)) for model in (report.model, "undefended"))
        shown = own or alone
        assert shown is not None
        routes = f"{'all routes run' if scope == 'all' else scope} ({', '.join(shown.routes)})"
        sheet.add(threat_text(threat), routes, *([_worst(alone)] if both else []), _worst(own))
        if own is not None and own.worst_of_n is not None:
            for name, figure in (
                (f"attacker who submits each image {report.judgements} times", own.worst_of_n),
                (f"majority vote of {report.judgements} judgements", own.majority),
            ):
                sheet.add("", name, *(["-"] if both else []), rate_text(figure))
    for certificate in report.certificates:
        text = f"none: certified by {certificate.method}"
        sheet.add(threat_text(certificate.threat), text, *(["-"] if both else []), rate_text(certificate.result))
    return sheet


def _worst(case: WorstCase | None) -> str:
    if case is None:
        return "-"
    return rate_text(case.result) + ("" if case.complete else "\nincomplete")


def _rows_table(report: AuditReport, threat: Threat | None) -> Sheet:
    both, rejects = report.model == "guarded", report.rejects
    columns = [
        Column("attack", heading=True, breaks=SPEC_PARTS),
        Column("route", heading=True),
        Column("attacked"),
        *([Column("undefended")] if both else []),
        *([Column(report.right), Column("rejected")] if rejects else []),
        *([Column(_result_name(report))] if threat or not rejects else []),
    ]
    sheet = Sheet(threat_text(threat) if threat else "clean images", columns)
    rows = [row for row in report.rows if row.threat in (None, threat)]
    swept = sweeps(rows, report.model)
    shown: set[int] = set()
    for row, alone in _side_by_side(report, rows):
        own = row if row.model == report.model else None
        beside = "" if id(alone) in shown else _alone_text(report, alone)
        shown |= {id(alone)} if alone is not None else set()
        sheet.add(
            attack_text(row) + (f" (eot {row.eot})" if swept and row.threat and row.route in WHITE_BOX else ""),
            route_text(row, report),
            cost_text(row),
            *([beside] if both else []),
            *(_own_cells(report, own)[: None if threat else -1] if rejects else [_own_text(report, own)]),
        )
    return sheet


def _own_cells(report: AuditReport, own: Row | None) -> list[str]:
    """Of a guard that rejects images: right, rejected, and right or rejected, which is nothing to ask clean images."""
    rejected = rate_text(own.rejected if own else None)
    if own is not None and own.threat is None:  # the result counts images that are right and accepted, as ``right``
        return [_own_text(report, own), rejected, "-"]
    return [rate_text(own.right if own else None), rejected, _own_text(report, own)]


def _own_text(report: AuditReport, own: Row | None) -> str:
    return _alone_text(report, own) if own is not None and own.model == "undefended" else result_text(own)


def _alone_text(report: AuditReport, row: Row | None) -> str:
    """The undefended classifier's result; on clean images it agrees with itself, which is no result."""
    return "-" if report.agreement and row is not None and row.threat is None else result_text(row)


def _side_by_side(report: AuditReport, rows: list[Row]) -> list[tuple[Row, Row | None]]:
    """Each row of the audited model with that of the same attack on the undefended classifier, if there is one.

    The undefended classifier is attacked in the sequence "oblivious", or in its own if that route was not run. It is
    attacked once, so the same row of it can stand beside several of a guard, one for each route.
    """
    own = sorted((row for row in rows if row.model == report.model), key=lambda row: row.sequence == "oblivious")
    if report.model == "undefended":
        return [(row, None) for row in own]
    alone = {(row.attack, row.sequence is not None): row for row in rows if row.model == "undefended"}
    pairs = [(row, alone.get((row.attack, row.sequence is not None))) for row in own]
    paired = {id(other) for _, other in pairs}
    return [*pairs, *((row, row) for row in alone.values() if id(row) not in paired)]


def _notes(report: AuditReport) -> list[str]:
    notes = []
    if report.agreement:
        notes.append(
            "agreement: the images have no labels, so an image counts if it gets the answer that the undefended "
            "classifier gives to the clean image; whether that answer is true is not known. The undefended classifier "
            "agrees with itself on clean images by definition, so there it has no figure."
        )
    if any(row.threat for row in report.rows):
        notes.append(
            "attacked: number of images that the attack was given, and how many gradients (g), or queries (q) if it "
            "uses none, it asked for per image. Images leave an attack once they are wrong."
        )
    if any(row.threat and row.model == "guarded" for row in report.rows):
        notes.append(
            "undefended: without a purifier all routes are the same, so each attack has one figure, in its first row."
        )
        if report.purifier and report.purifier.get("random") is False:
            notes.append(
                "The purifier draws no noise, so --eot and --judgements (eot= and judgements= in Python) change "
                "nothing: both are 1."
            )
    if any(row.sequence for row in report.rows):
        notes.append(
            "A row marked > is part of a sequence: it attacked only the images that the rows above left right, and "
            f"shows the {_share(report)} that remains."
            + (" Its detection covers only the images that it fooled itself." if report.purifier else "")
        )
    if report.rejects:
        notes.append(
            f'The guard rejects images. Images that are "{report.right}" are also accepted. "{report.right} or '
            f'rejected" is about attacks: it counts images that were {report.right} when clean, and under the attack '
            "still are, or are rejected."
        )
    if any(row.worst_of_n for row in report.rows):
        times = report.judgements
        notes.append(
            f"The purifier is random: figures are means over {times} judgements of each image with fresh noise. In "
            f"round brackets: first what remains against an attacker who submits each image {times} times (images "
            f"right in all judgements), then what a majority vote gives (right in most). Gradients are means over "
            f"{report.eot} draws."
        )
    return notes
