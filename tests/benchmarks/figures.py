"""The committed figures in ``results/``: raw audit reports, measured figures, and how each of them was made.

A folder of reports has a ``source.json`` with the command and the machine; date, versions and seed are in the reports.
A file in ``results/measured`` holds tables of figures without a report, and the same facts about them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_table import MISSING, markdown_table, percent

from purifier import AuditReport
from purifier.auditing.statistics import Rate, rate

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
MEASURED = RESULTS / "measured"


@dataclass(frozen=True)
class Source:
    """How figures were made; None where nobody wrote it down."""

    command: Sequence[str]
    """Lines of shell."""
    machine: str | None = None
    versions: str | None = None
    date: str | None = None
    seed: int | None = None
    took: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Measured:
    """Figures without a report."""

    source: Source
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    """Rows of each table; every row has the same keys, the names of the columns."""


def report_paths(folder: Path) -> list[Path]:
    """All reports in a folder and those below it, in the order of the images they are about."""
    return sorted(folder.rglob("report.json"), key=lambda path: (len(path.parent.name), path))


def load_reports(folder: Path) -> list[AuditReport]:
    return [AuditReport.load(path) for path in report_paths(folder)]


def read_measured(path: Path) -> Measured:
    found = json.loads(path.read_text(encoding="utf-8"))
    return Measured(Source(**found["source"]), found["tables"])


def read_source(folder: Path) -> Source:
    return Source(**json.loads((folder / "source.json").read_text(encoding="utf-8")))


def add_up(rates: Iterable[Rate]) -> Rate:
    """The rate over all images of rates that are each of a part of them."""
    parts = list(rates)
    return rate(sum(part.correct for part in parts), sum(part.count for part in parts))


def measured_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown_table(list(rows[0]), ([cell(row[column]) for column in rows[0]] for row in rows))


def cell(value: Any) -> str:
    """A number or text as it is; a share as a percentage; a count of images right with its 95% interval."""
    if isinstance(value, Mapping):
        if "correct" in value:
            found = rate(value["correct"], value["count"])
            return percent(found.share, found.interval)
        return percent(value["share"], value.get("interval"))
    if value is None:
        return MISSING
    return f"{value:,}" if isinstance(value, int) else str(value)


def measured_source(source: Source) -> str:
    """A paragraph and the command, for figures without a report."""
    known = [source.date or "date not recorded", source.versions or "versions not recorded"]
    return _source(source, [*known, *([] if source.seed is None else [f"seed {source.seed}"])])


def reports_source(folder: Path, reports: Sequence[AuditReport]) -> str:
    """A paragraph and the command, for figures from the reports in a folder."""
    return _source(read_source(folder), facts(reports), f"Raw reports: `{folder.relative_to(ROOT).as_posix()}`.")


def facts(reports: Sequence[AuditReport]) -> list[str]:
    """Date, versions, seed, device and flags, as the reports tell them."""
    days = sorted({report.created[:10] for report in reports})
    versions = {
        ", ".join(f"{name} {number}" for name, number in report.versions.items() if name != "purifier")
        for report in reports
    }
    flags = sorted({flag.name for report in reports for flag in report.flags})
    return [
        " to ".join(dict.fromkeys((days[0], days[-1]))),
        " or ".join(sorted(versions)),
        "seed " + " or ".join(sorted({str(report.seed) for report in reports})),
        "device " + " or ".join(sorted({report.device for report in reports})),
        "flags: " + ", ".join(flags) if flags else "no flags",
    ]


def scope(reports: Sequence[AuditReport]) -> str:
    """Threats, number of images and data set of reports that each cover a part of the images."""
    threats = {f"{threat.norm} {threat.eps:g}": None for report in reports for threat in report.threats}
    first, *others = [report.data["name"] for report in reports]
    name = first.rpartition(":")[0] if others else first
    return f"{', '.join(threats)}; {sum(report.data['count'] for report in reports):,} images, `{name}`"


def _source(source: Source, known: Sequence[str], end: str = "") -> str:
    sentences = [f"{', '.join(known)}.", f"Machine: {source.machine or 'not recorded'}."]
    sentences += [f"Time: {source.took}."] if source.took else []
    sentences += [source.note] if source.note else []
    text = " ".join([*sentences, *([end] if end else [])])
    return "\n".join([text[0].upper() + text[1:], "", "```sh", *source.command, "```"])
