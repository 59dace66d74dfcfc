"""Charts of a page as coordinates, which its template draws as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..auditing.arrays import Array
from ..auditing.report import AuditReport, Row
from ..auditing.results import Results
from ..auditing.statistics import Rate
from .summary import clean_row

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 460, 300, 52, 14, 24, 44
ROUTE_STYLES = {"exact": "white-box", "bpda": "guarded", "oblivious": "undefended", "none": "none"}
POINTS = 200
"""Largest number of points of a curve."""


@dataclass(frozen=True)
class Point:
    """A figure in a chart, in its coordinates."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Series:
    """Figures that belong together."""

    name: str
    kind: str
    """Its style: ``guarded``, ``white-box`` or ``undefended``."""
    points: Sequence[Point]

    @property
    def line(self) -> str:
        """The points as SVG writes them."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class EpsChart:
    """Shares of images against eps, for one norm."""

    norm: str
    series: Sequence[Series]
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Curve:
    """A ROC curve of one attack."""

    attack: str
    kind: str
    """Its style, by route."""
    line: str


def x_of(share: float) -> float:
    """Where a share of the width is."""
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def y_of(share: float) -> float:
    """Where a share of images is; 1 is at the top."""
    return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)


def eps_charts(report: AuditReport) -> list[EpsChart]:
    """A chart for each norm that was attacked: worst cases against eps, from clean images at 0."""
    charts = []
    for norm in dict.fromkeys(case.threat.norm for case in report.worst_case):
        largest = max(case.threat.eps for case in report.worst_case if case.threat.norm == norm)
        series = [
            found
            for name, kind, model, scope in _kinds(report)
            if len((found := _series(report, name, kind, model, scope, norm, largest)).points) > 1
        ]
        budgets = sorted({case.threat.eps for case in report.worst_case if case.threat.norm == norm})
        ticks = [(x_of(eps / largest), f"{eps:.3g}") for eps in (0.0, *budgets)]
        charts.append(EpsChart(norm, series, ticks))
    return charts


def _kinds(report: AuditReport) -> Sequence[tuple[str, str, str, str]]:
    own = "guarded" if report.model == "guarded" else "classifier alone"
    found = [
        (f"{own}, all attacks", "guarded", report.model, "all"),
        (f"{own}, white-box attacks", "white-box", report.model, "white-box"),
    ]
    return [*found, ("undefended, all attacks", "undefended", "undefended", "all")][: 3 if own == "guarded" else 2]


def _series(report: AuditReport, name: str, kind: str, model: str, scope: str, norm: str, largest: float) -> Series:
    clean = clean_row(report, model)
    figures: list[tuple[float, Rate]] = [] if clean is None or clean.result is None else [(0.0, clean.result)]
    figures += sorted(
        (
            (case.threat.eps, case.result)
            for case in report.worst_case
            if (case.model, case.scope, case.threat.norm) == (model, scope, norm)
        ),
        key=lambda figure: figure[0],
    )
    points = [
        Point(
            x=x_of(eps / largest),
            y=y_of(rate.share),
            low=y_of(rate.interval[0]),
            high=y_of(rate.interval[1]),
            text=f"{name}, eps {eps:.4g}: {rate} of {rate.count} images",
        )
        for eps, rate in figures
    ]
    return Series(name, kind, points)


def roc_curves(report: AuditReport, results: Results | None) -> list[Curve]:
    """How the score separates images that each attack fooled from clean ones; none without the images' results."""
    clean = next((at for at, row in enumerate(report.rows) if row.model == "guarded" and row.threat is None), None)
    if results is None or clean is None:
        return []
    curves = []
    for at, row in enumerate(report.rows):
        if row.detection is None or row.detection.auc is None or row.threat is None:
            continue
        fooled = (results.plain[clean] > 0.5) & (results.plain[at] <= 0.5)
        ranked = np.where(np.isnan(results.scores), np.inf, results.scores)  # such images are rejected
        kind = ROUTE_STYLES.get(row.route or "", "none")
        curves.append(Curve(row_name(row), kind, _roc(ranked[at][fooled], ranked[clean])))
    return curves


def row_name(row: Row) -> str:
    """A row's attack, route and threat."""
    draws = f", eot {row.eot}" if row.eot > 1 else ""
    return f"{row.attack}, {row.route}, {row.threat}{draws}"


def _roc(positives: Array, negatives: Array) -> str:
    """The points of a ROC curve: the share of fooled images above each threshold against that of clean ones."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    if len(thresholds) > POINTS:
        thresholds = thresholds[np.linspace(0, len(thresholds) - 1, POINTS).round().astype(int)]
    hits = [0.0, *(float((positives >= one).mean()) for one in thresholds), 1.0]
    alarms = [0.0, *(float((negatives >= one).mean()) for one in thresholds), 1.0]
    return " ".join(f"{x_of(alarm):.1f},{y_of(hit):.1f}" for alarm, hit in zip(alarms, hits, strict=True))
