"""A report as CSV: one line for each row, each worst case and each certificate."""

from __future__ import annotations

import csv
import io
import itertools

from ..auditing.certificate import Certificate
from ..auditing.report import WHITE_BOX, AuditReport, Row, WorstCase
from ..auditing.statistics import Rate
from .taxonomy import technique_of

COLUMNS = (
    *("kind", "model", "attack", "route", "white_box", "norm", "eps", "eot", "sequence", "attacked", "share", "low"),
    *("high", "correct", "count", "worst_of_n", "majority", "right", "rejected", "auc", "queries_per_image"),
    *("gradients_per_image", "seconds", "complete", "multi_step", "atlas", "error"),
)


def to_csv(report: AuditReport) -> str:
    """All figures with their 95% intervals; ``kind`` is clean, attack, worst-case or certified."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    certified = map(_of_certificate, report.certificates, itertools.repeat(report.model))
    for line in (*map(_of_row, report.rows), *map(_of_case, report.worst_case), *certified):
        writer.writerow({name: _safe(value) for name, value in line.items() if value is not None})
    return text.getvalue()


def _of_row(row: Row) -> dict[str, object]:
    term, threat = technique_of(row), row.threat
    return {
        "kind": "clean" if threat is None else "attack",
        "model": row.model,
        "attack": row.attack,
        "route": row.route,
        "white_box": None if threat is None else row.route in WHITE_BOX,
        **_rate(row.result),
        **{name: _share(getattr(row, name)) for name in ("worst_of_n", "majority", "right", "rejected")},
        **{name: getattr(row, name) for name in ("eot", "sequence", "attacked", "seconds", "error")},
        **{name: round(getattr(row, name), 3) for name in ("queries_per_image", "gradients_per_image")},
        "auc": row.detection and row.detection.auc and row.detection.auc.value,
        **({} if threat is None else {"norm": threat.norm, "eps": threat.eps}),
        "atlas": term and term.id,
    }


def _of_case(case: WorstCase) -> dict[str, object]:
    return {
        "kind": f"worst-case {case.scope}",
        "model": case.model,
        "route": " ".join(case.routes),
        "white_box": case.scope == "white-box",
        "norm": case.threat.norm,
        "eps": case.threat.eps,
        **_rate(case.result),
        **{name: _share(getattr(case, name)) for name in ("worst_of_n", "majority")},
        "complete": case.complete,
        "multi_step": case.multi_step,
    }


def _of_certificate(one: Certificate, model: str) -> dict[str, object]:
    return {
        "kind": "certified",
        "model": model,
        "norm": one.threat.norm,
        "eps": one.threat.eps,
        **_rate(one.result),
    }


def _rate(rate: Rate | None) -> dict[str, object]:
    if rate is None:
        return {}
    low, high = rate.interval
    return {"share": rate.share, "low": low, "high": high, "correct": rate.correct, "count": rate.count}


def _share(rate: Rate | None) -> float | None:
    return None if rate is None else rate.share


def _safe(value: object) -> object:
    """Spreadsheets run a text that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
