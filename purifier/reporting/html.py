"""A report as one HTML file: no network, no scripts; its template is in ``templates``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..attacking.threat import Threat
from ..auditing.flags import FLAGS
from ..auditing.heading import heading
from ..auditing.presets import PROBED
from ..auditing.report import AuditReport, Row, WorstCase
from ..auditing.statistics import Rate, rate
from . import charts
from .cost import cost_text
from .findings import LIGHTS, GateResult, findings, missed_of, rule_of
from .strips import class_name, strips_of
from .summary import attacker, command_text, counted, date_text, limits, verdict, worst_of
from .taxonomy import ATLAS_VERSION, EVADE, NIST_NAME, Term, mitigations_of, technique_of

MOST_CLASSES = 100
"""Largest number of classes in the table of classes."""


@dataclass(frozen=True)
class Compared:
    """A line of the comparison: a model beside the other."""

    name: str
    undefended: Rate | None
    own: Rate | None
    complete: bool


@dataclass(frozen=True)
class MatrixLine:
    """One attack along one route, and its row for each threat."""

    attack: str
    route: str
    term: Term | None
    cells: Sequence[Row | None]


@dataclass(frozen=True)
class ClassLine:
    """The figures of one class."""

    name: str
    clean: Rate
    worst: Rate


def to_html(
    report: AuditReport, gates: Sequence[GateResult] | None = None, *, class_names: Sequence[str] | None = None
) -> str:
    """The page. Whatever comes from the report is escaped.

    Parameters
    ----------
    gates
        What the gates looked at; None if there was no gate.
    class_names
        Names of the classes in the order of the labels; by default the report's.
    """
    names = class_names if class_names is not None else report.class_names
    page = Environment(
        loader=PackageLoader("purifier.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    detected = [row for row in report.rows if row.detection is not None and row.threat is not None]
    missed = missed_of(gates)
    found: dict[str, Any] = {
        "report": report,
        "verdict": verdict(report, missed),
        "gates": gates or (),
        "gate_lights": LIGHTS,
        "gate_advice": list(dict.fromkeys(rule_of(one)[2] for one in missed or ())),
        "cost": cost_text(report),
        "counted": counted(report),
        "compared": _compared(report),
        "charts": charts.eps_charts(report),
        "plot": {name.lower(): getattr(charts, name) for name in ("WIDTH", "HEIGHT", "LEFT", "TOP", "RIGHT", "BOTTOM")},
        "y_of": charts.y_of,
        "x_of": charts.x_of,
        "matrices": [(model, _matrix(report, model)) for model in _models(report)],
        "strips": strips_of(report, names),
        "wrong": [(one, *rule_of(one)) for one in findings(report)],
        "quiet": _quiet(report),
        "probed": PROBED,
        "curves": charts.roc_curves(report, report.results),
        "detections": detected,
        "routes": [(route, charts.ROUTE_STYLES.get(route or "", "none")) for route in _routes(detected)],
        "row_name": charts.row_name,
        "rejections": [row for row in report.rows if row.rejected is not None],
        "classes": _classes(report, names),
        "class_threat": None if (case := worst_of(report)) is None else case.threat,
        "heading": heading(report),
        "hashes": _hashes(report),
        "settings": _settings(report),
        "command": command_text(report),
        "date": date_text(report),
        "version": report.versions.get("purifier", "of an unknown version"),
        "limits": limits(report),
        "attacker": attacker,
        "evade": EVADE,
        "mitigations": mitigations_of(report),
        "atlas_version": ATLAS_VERSION,
        "nist": NIST_NAME,
    }
    return page.render(found) + "\n"


def _routes(rows: Sequence[Row]) -> list[str | None]:
    return list(dict.fromkeys(row.route for row in rows))


def _models(report: AuditReport) -> list[str]:
    """The audited model first."""
    return [report.model, *(["undefended"] if report.model == "guarded" else [])]


def _compared(report: AuditReport) -> list[Compared]:
    both = report.model == "guarded"
    clean = {row.model: row.result for row in report.rows if row.threat is None}
    alone = clean.get("undefended") if both and not report.agreement else None
    lines = [Compared("clean images", alone, clean.get(report.model), True)]
    cases = {(case.threat, case.scope, case.model): case for case in report.worst_case}
    for threat, scope in dict.fromkeys((case.threat, case.scope) for case in report.worst_case):
        own, other = cases.get((threat, scope, report.model)), cases.get((threat, scope, "undefended"))
        kind = "worst case of all attacks" if scope == "all" else "worst case of white-box attacks"
        complete = all(case.complete for case in (own, other) if case is not None)
        lines.append(Compared(f"{threat}, {kind}", _result(other) if both else None, _result(own), complete))
    for one in report.certificates:
        lines.append(Compared(f"{one.threat}, certified by {one.method}", None, one.result, True))
    return lines


def _result(case: WorstCase | None) -> Rate | None:
    return None if case is None else case.result


def _matrix(report: AuditReport, model: str) -> list[MatrixLine]:
    lines: dict[tuple[str, str, int, bool], dict[Threat, Row]] = {}
    for row in report.rows:
        if row.model == model and row.threat is not None:
            lines.setdefault((row.attack, row.route or "", row.eot, bool(row.sequence)), {})[row.threat] = row
    return [
        MatrixLine(
            f"{'> ' if sequence else ''}{attack}{f' (eot {eot})' if eot > 1 else ''}",
            route,
            technique_of(next(iter(rows.values()))),
            [rows.get(threat) for threat in report.threats],
        )
        for (attack, route, eot, sequence), rows in lines.items()
    ]


def _quiet(report: AuditReport) -> list[tuple[str, str]]:
    """The flags that were looked for and not raised: name and when they are raised."""
    raised = {flag.name for flag in report.flags}
    looked_for = list(FLAGS.values()) if report.probes else []
    if not report.worst_case:
        looked_for = [kind for kind in looked_for if kind.name in ("at-chance", "set-up")]
    return [(kind.name, kind.raised_if) for kind in looked_for if kind.name not in raised]


def _classes(report: AuditReport, names: Sequence[str] | None) -> list[ClassLine]:
    """Clean images and the worst case of each class that the data has; nothing without the images' results."""
    results, case = report.results, worst_of(report)
    if results is None or case is None:
        return []
    clean = [at for at, row in enumerate(report.rows) if row.model == report.model and row.threat is None]
    attacked = [at for at, row in enumerate(report.rows) if (row.model, row.threat) == (report.model, case.threat)]
    before, after = results.worst(clean), results.worst([*clean, *attacked])
    lines = []
    for label in np.unique(results.labels).tolist():
        chosen = results.labels == label
        count = int(chosen.sum())
        figures = (rate(min(float(shares[chosen].sum()), count), count) for shares in (before, after))
        lines.append(ClassLine(class_name(label, names), *figures))
    return sorted(lines, key=lambda line: line.worst.share)[:MOST_CLASSES]


def _hashes(report: AuditReport) -> list[tuple[str, str]]:
    found = [("classifier", report.classifier["sha256"]), ("data", report.data["sha256"])]
    found += [] if report.purifier is None else [("purifier", report.purifier.get("sha256"))]
    return [(name, str(value)) for name, value in found if value is not None]


def _settings(report: AuditReport) -> list[tuple[str, str]]:
    names = ("seed", "device", "batch_size", "judgements", "eot", "preset", "probes", "gradient_check")
    found = [(name, getattr(report, name)) for name in names]
    found += [(f"{name} (version)", value) for name, value in report.versions.items()]
    return [(name, str(value)) for name, value in found if value is not None]
