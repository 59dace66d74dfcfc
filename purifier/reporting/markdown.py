"""A report as Markdown, for a comment on a change or a wiki page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..auditing.figures import rate_text
from ..auditing.heading import heading
from ..auditing.report import AuditReport, Row
from .cost import cost_text
from .findings import LIGHTS, GateResult, findings, missed_of, rule_of
from .summary import command_text, counted, limits, verdict
from .taxonomy import ATLAS_VERSION, NIST_NAME, technique_of

MARKS = {"good": "🟢", "doubt": "🟡", "bad": "🔴", "plain": "🔵"}


def to_markdown(report: AuditReport, gates: Sequence[GateResult] | None = None) -> str:
    """The verdict, gates, what is wrong, worst cases and every attack; ``gates`` is None without any."""
    head, cost = verdict(report, missed_of(gates)), cost_text(report)
    parts = [
        f"# Audit: {escaped(report.data['name'])}",
        f"{MARKS[head.light]} **{escaped(head.title)}.** {escaped(' '.join(head.sentences))}",
        *_gates(gates or ()),
        *_findings(report),
        "## Worst case",
        worst_table(report),
        "## Every attack",
        _rows_table(report),
        f"ATLAS: MITRE ATLAS {ATLAS_VERSION}. Terms: {NIST_NAME}. Shares of images with 95% intervals.",
        *([] if cost is None else ["## Cost of the guard", escaped(cost)]),
        "## What was audited",
        *(f"- {name}: {escaped(value)}" for name, value in heading(report)),
        *_command(report),
        "## Limits",
        *(f"- {escaped(text)}" for text in limits(report)),
    ]
    return joined(parts)


def joined(parts: Sequence[str]) -> str:
    """Paragraphs, tables and list items as a document: items of one list below each other, all else apart."""
    text = ""
    for before, part in zip(("", *parts), parts, strict=False):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n" if before else "") + part
    return text + "\n"


def escaped(text: object) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", plain)


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table; cells are escaped."""
    rows = [head, ["---"] * len(head), *([escaped(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def worst_table(report: AuditReport) -> str:
    """The worst case of each model, threat and scope, and what is certified."""
    return table(
        ["model", "threat", "attacks", counted(report), "images"],
        [
            (
                case.model,
                case.threat,
                ("white-box: " if case.scope == "white-box" else "all: ") + ", ".join(case.routes),
                rate_text(case.result) + ("" if case.complete else " (incomplete)"),
                case.result.count,
            )
            for case in report.worst_case
        ]
        + [
            (report.model, one.threat, f"none: certified by {one.method}", one.result, one.result.count)
            for one in report.certificates
        ],
    )


def _rows_table(report: AuditReport) -> str:
    return table(
        ["model", "attack", "route", "threat", counted(report), "images", "ATLAS", "term"],
        [
            (row.model, row.attack, row.route or "", row.threat or "clean", *_figure(row), *_terms(row))
            for row in report.rows
        ],
    )


def _figure(row: Row) -> tuple[object, object]:
    return ("error", "") if row.result is None else (row.result, row.result.count)


def _terms(row: Row) -> tuple[str, str]:
    term = technique_of(row)
    return ("", "") if term is None else (term.id, term.nist)


def _gates(gates: Sequence[GateResult]) -> list[str]:
    lines = [f"- {MARKS[LIGHTS[one.state]]} {one.state}: {escaped(one.text)}" for one in gates]
    return ["## Gates", *lines] if lines else []


def _findings(report: AuditReport) -> list[str]:
    lines = []
    for finding in findings(report):
        _, why, what_to_do = rule_of(finding)
        advice = escaped(f" {why} What to do: {what_to_do}." if why else "")
        lines.append(f"- **{escaped(finding.rule)}**: {escaped(finding.text)}.{advice}")
    return ["## What is wrong", *lines] if lines else []


def _command(report: AuditReport) -> list[str]:
    command = command_text(report)
    return [] if command is None else [f"Made by: <code>{escaped(command)}</code>"]
