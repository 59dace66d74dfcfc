"""What is wrong with an audit or with what it found: flags, attacks that failed, gates that were missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..auditing.flags import FLAGS
from ..auditing.report import AuditReport

ATTACK_FAILED, GATE = "attack-failed", "gate"
OTHER_RULES = {
    ATTACK_FAILED: (
        "an attack ended with an error",
        "The worst case is then only an upper bound.",
        "fix the error, and run the audit again",
    ),
    GATE: (
        "the worst case's 95% interval reaches below the share that was asked for",
        "Fewer images may be right under attack than are required.",
        "train a better purifier, or lower the gate knowingly",
    ),
}
"""Rules besides the flags: when each is broken, why that matters, and what to do."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    rule: str
    """A flag, or one of ``OTHER_RULES``."""
    level: Literal["error", "warning"]
    text: str
    """The observation in numbers."""


def rules() -> dict[str, tuple[str, str, str]]:
    """Every rule: when it is broken, why that matters, and what to do."""
    return {**{kind.name: (kind.raised_if, kind.why, kind.what_to_do) for kind in FLAGS.values()}, **OTHER_RULES}


def rule_of(finding: Finding) -> tuple[str, str, str]:
    """The rule of a finding; empty texts for a flag of a later version."""
    return rules().get(finding.rule, ("", "", ""))


def gate_findings(report: AuditReport, least: float | None) -> list[Finding] | None:
    """The worst cases that miss a gate of ``least``, a share of images; None without a gate."""
    if least is None:
        return None
    return [
        Finding(GATE, "error", f"{case.threat}: {case.result} of {case.result.count} images, less than {least:.1%}")
        for case in report.gate(least)
    ]


def findings(report: AuditReport, missed: Sequence[Finding] = ()) -> list[Finding]:
    """Everything that is wrong, gates first; ``missed`` are the gates that were missed."""
    failed = [
        Finding(ATTACK_FAILED, "error", f"{row.attack}, {row.route}, {row.threat}, {row.model} model: {row.error}")
        for row in report.rows
        if row.error
    ]
    return [*missed, *failed, *(Finding(flag.name, "warning", flag.evidence) for flag in report.flags)]
