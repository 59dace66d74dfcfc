"""A report as SARIF 2.1.0: rules are the flags, failed attacks and gates, results are what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ..auditing.report import FILE_NAME, AuditReport
from .findings import Finding, findings, rules
from .summary import command_text, verdict
from .taxonomy import ATLAS_URL, ATLAS_VERSION, EVADE, TECHNIQUES, technique_of

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
ATLAS = "MITRE ATLAS"


def to_sarif(report: AuditReport, missed: Sequence[Finding] | None = None) -> str:
    """One run; ``missed`` are missed gates, None without any. Each result names MITRE ATLAS' technique of evasion."""
    found = findings(report, missed or ())
    known = rules()
    names = [*known, *dict.fromkeys(one.rule for one in found if one.rule not in known)]
    head = verdict(report, missed)
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "purifier",
                "version": report.versions.get("purifier", "unknown"),
                "rules": [_rule(name, *known.get(name, ("", "", ""))) for name in names],
                "supportedTaxonomies": [{"name": ATLAS, "index": 0}],
            }
        },
        "taxonomies": [_atlas()],
        "invocations": [_invocation(report)],
        "results": [_result(one, names.index(one.rule)) for one in found],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "verdict": head.title,
            "summary": list(head.sentences),
            "data": {"name": report.data["name"], "sha256": report.data["sha256"], "count": report.data["count"]},
            "classifier_sha256": report.classifier["sha256"],
            "purifier_sha256": report.purifier and report.purifier.get("sha256"),
            "attacks": sorted({f"{term.id} {row.attack}" for row in report.rows if (term := technique_of(row))}),
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _rule(name: str, raised_if: str, why: str, what_to_do: str) -> dict[str, Any]:
    found: dict[str, Any] = {"id": name}
    if raised_if:
        found |= {
            "shortDescription": {"text": _sentence(raised_if)},
            "fullDescription": {"text": why},
            "help": {"text": _sentence(what_to_do)},
        }
    return found


def _result(finding: Finding, place: int) -> dict[str, Any]:
    digest = hashlib.sha256(f"{finding.rule}\n{finding.text}".encode()).hexdigest()
    return {
        "ruleId": finding.rule,
        "ruleIndex": place,
        "level": finding.level,
        "message": {"text": finding.text},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": FILE_NAME}, "region": {"startLine": 1}}}],
        "partialFingerprints": {"finding/v1": digest},
        "taxa": [{"id": EVADE.id, "toolComponent": {"name": ATLAS, "index": 0}}],
    }


def _atlas() -> dict[str, Any]:
    return {
        "name": ATLAS,
        "version": ATLAS_VERSION,
        "organization": "MITRE",
        "informationUri": ATLAS_URL,
        "shortDescription": {"text": "Techniques of attacks on AI systems"},
        "taxa": [{"id": term.id, "name": term.name} for term in TECHNIQUES],
    }


def _invocation(report: AuditReport) -> dict[str, Any]:
    ended = report.created.replace("+00:00", "Z")
    found: dict[str, Any] = {"executionSuccessful": report.complete, "endTimeUtc": ended}
    command = command_text(report)
    return found if command is None else {**found, "commandLine": command}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
