"""The tables of detection: how well the purifier's score separates attacked images, and what its threshold rejects."""

from __future__ import annotations

from rich.console import Console

from ..attacking.threat import Threat
from .detection import Detection
from .figures import area_text, attack_text, rate_text, route_text, threat_text
from .layout import SPEC_PARTS, Column, Sheet, say
from .report import WHITE_BOX, AuditReport, Row

ALONG = {
    "exact": "along the exact route",
    "bpda": "along the route bpda, the strongest that this purifier has",
    None: "along the strongest route that the purifier has",
}


def print_detection(report: AuditReport, console: Console) -> None:
    """Print a table for each threat, what the figures mean, and what the threshold does to clean images."""
    detections = [(row, row.detection) for row in report.rows if row.detection is not None]
    attacked = [(row, found) for row, found in detections if row.threat is not None]
    for threat in report.threats if attacked else []:
        _table(report, threat, [(row, found) for row, found in attacked if row.threat == threat]).print(console)
    if attacked:
        fooled = "classified correctly when clean and wrongly under the attack"
        if report.agreement:
            fooled = "in agreement when clean and not under the attack"
        fooled += ", rejected or not" if report.on_reject not in (None, "ignore") else ""
        say(
            console,
            f"detection: how well the purifier's score separates fooled images ({fooled}) from clean ones; an AUC of "
            "0.5 means not at all" + ("; rejected: of the fooled images" if report.calibration else ""),
        )
        say(console, _joint(report, [row for row, _ in attacked]))
    if report.calibration is None:
        if attacked:
            say(console, "threshold: not calibrated, so nothing is rejected; `purifier calibrate` finds one")
        return
    calibration = report.calibration
    false_positives = next((found.rejected for row, found in detections if row.threat is None), None)
    say(
        console,
        f"threshold: calibrated on {calibration['count']} images of {calibration['data']} to reject "
        f"{100 * calibration['fpr']:.4g}% of clean images; here it rejects {rate_text(false_positives)} of the clean "
        "images",
    )


def _table(report: AuditReport, threat: Threat, rows: list[tuple[Row, Detection]]) -> Sheet:
    columns = [
        Column("attack", heading=True, breaks=SPEC_PARTS),
        Column("route", heading=True),
        Column("fooled"),
        Column("AUC"),
    ]
    if report.calibration:
        columns.append(Column(f"rejected at\n{100 * report.calibration['fpr']:.4g}% FPR"))
    # What becomes of the images that a guard rejects is in its rows.
    held = bool(report.calibration) and report.on_reject in (None, "ignore")
    if held:
        columns.append(Column("right or\nrejected"))
    sheet = Sheet(f"detection, {threat_text(threat)}", columns)
    for row, found in rows:
        shares = [found.rejected] if report.calibration else []
        shares += [found.held] if held else []
        cells = (str(found.fooled), area_text(found.auc), *map(rate_text, shares))
        sheet.add(attack_text(row), route_text(row, report), *cells)
    return sheet


def _joint(report: AuditReport, rows: list[Row]) -> str:
    """Whether an attack also tried to evade the detector, along the strongest route there is."""
    strongest = _strongest_route(report)
    joint = [row for row in rows if row.scores_per_image > 0]
    best = [row for row in joint if row.route == (strongest or "exact")]
    weaker = [row for row in joint if row.route in WHITE_BOX]
    if best:
        here = f"here: {_names(best)}"
    elif weaker:
        here = f"here along {weaker[0].route} only: {_names(weaker)}"
    elif joint:
        here = f"here with queries only, which prove less than gradients: {_names(joint)}"
    else:
        here = "none here (add joint, or joint-square without gradients), so these attacks did not try to evade it"
    return f"A detector must be tested by a joint attack on it and the classifier {ALONG[strongest]}; {here}"


def _strongest_route(report: AuditReport) -> str | None:
    """``exact`` or ``bpda``, whichever sees most of the purifier; None if the report does not tell."""
    routes = {row.route for row in report.rows if row.model == "guarded"}
    if "exact" in routes or (report.purifier is not None and report.purifier["surrogate"] == "identity"):
        return "exact"  # a purifier that declares a surrogate gradient has a surrogate of its own
    if "bpda" not in routes:
        return None
    white_box = any(case.model == "guarded" and case.scope == "white-box" for case in report.worst_case)
    return "bpda" if white_box else "exact"


def _names(rows: list[Row]) -> str:
    return ", ".join(dict.fromkeys(row.attack for row in rows))
