"""An evidence sheet: what was measured, on what, how, and what that does not show. It claims no compliance."""

from __future__ import annotations

from ..auditing.report import AuditReport
from ..auditing.statistics import Rate
from .findings import findings
from .markdown import escaped, joined, table, worst_table
from .summary import attacker, clean_row, command_text, limits, verdict
from .taxonomy import ATLAS_VERSION, EVADE, NIST_NAME, mitigations_of, technique_of

PREAMBLE = (
    "This sheet is evidence from one audit. It does not state that any law, standard or policy is complied with, and "
    "no such statement follows from it alone."
)


def to_evidence(report: AuditReport) -> str:
    """The sheet as Markdown: metrics, threat model, hashes, environment, limits."""
    head = verdict(report)
    wrong = findings(report)
    none = ["None was found."] if report.probes else []
    parts = [
        f"# Evidence sheet: robustness of {escaped(report.classifier['description'])}",
        PREAMBLE,
        f"Audited {escaped(report.created)}. **{escaped(head.title)}.** {escaped(' '.join(head.sentences))}",
        "## Metrics",
        "Shares of images with 95% Wilson intervals.",
        table(["clean images", "share", "images"], _clean(report)),
        worst_table(report),
        "## Threat model",
        *(f"- {threat}: the attacker may {attacker(threat)}" for threat in report.threats),
        f"Technique: {EVADE.atlas} (MITRE ATLAS {ATLAS_VERSION}); {EVADE.nist} ({NIST_NAME}).",
        table(["attack", "route", "ATLAS", "term"], _attacks(report)),
        *(f"- Mitigation that was audited: {term.atlas}" for term in mitigations_of(report)),
        "## Signs that the figures are too high",
        *([f"- {escaped(one.rule)}: {escaped(one.text)}" for one in wrong] or none),
        f"Looked for on at most {report.probes} images." if report.probes else "They were not looked for.",
        "## What was audited",
        table(["part", "what", "SHA-256"], _hashes(report)),
        "## Environment",
        table(["setting", "value"], _environment(report)),
        "## Limits",
        *(f"- {escaped(text)}" for text in limits(report)),
    ]
    return joined(parts)


def _clean(report: AuditReport) -> list[tuple[str, object, object]]:
    rows = [(model, clean_row(report, model)) for model in dict.fromkeys(row.model for row in report.rows)]
    rates: list[tuple[str, Rate]] = [(model, row.result) for model, row in rows if row is not None and row.result]
    return [(model, rate, rate.count) for model, rate in rates]


def _attacks(report: AuditReport) -> list[tuple[str, ...]]:
    terms = [(row, technique_of(row)) for row in report.rows if row.model == report.model]
    return list(dict.fromkeys((row.attack, row.route or "", term.atlas, term.nist) for row, term in terms if term))


def _hashes(report: AuditReport) -> list[tuple[str, object, object]]:
    purifier = report.purifier or {}
    found: list[tuple[str, object, object]] = [
        ("classifier", report.classifier["description"], report.classifier["sha256"] or "not recorded")
    ]
    if purifier:
        found.append(("purifier", purifier["plugin"], purifier.get("sha256") or "none: it has no file"))
    return [*found, ("data", report.data["name"], report.data["sha256"] or "not recorded")]


def _environment(report: AuditReport) -> list[tuple[str, object]]:
    names = ("seed", "batch_size", "judgements", "eot", "device", "preset", "on_reject", "on_bad_pixels")
    settings = [(name, getattr(report, name)) for name in names]
    found = [*report.versions.items(), *((name, value) for name, value in settings if value is not None)]
    return [*found, ("command", command_text(report) or "run from Python")]
