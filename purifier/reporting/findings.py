"""What is wrong with an audit or with what it found: flags, attacks that failed, gates that were missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..auditing.baseline import Baseline
from ..auditing.flags import FLAGS
from ..auditing.gates import Gate, look
from ..auditing.report import AuditReport

ATTACK_FAILED, GATE, BASELINE = "attack-failed", "gate", "baseline"
OTHER_RULES = {
    ATTACK_FAILED: (
        "an attack ended with an error",
        "The worst case is then only an upper bound.",
        "fix the error, and run the audit again",
    ),
    GATE: (
        "the 95% interval of a result reaches below the share that was asked for",
        "Fewer images may be right than are required.",
        "train a better purifier, or lower the gate knowingly",
    ),
    BASELINE: (
        "fewer images are right than in an earlier audit, or may be, by more than the tolerance at 95%",
        "What changed since may have made the guard worse.",
        "look at what changed with purifier report diff; fix it, or make this audit the baseline knowingly",
    ),
}
"""Rules besides the flags: when each is broken, why that matters, and what to do."""
LIGHTS = {"passed": "good", "undecided": "doubt", "missed": "bad"}
"""How the state of a gate is shown."""


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


@dataclass(frozen=True)
class GateResult:
    """One result that a gate looked at."""

    rule: str
    """``GATE`` or ``BASELINE``."""
    text: str
    """What was looked at, such as ``worst case, linf 0.1``, and the result in numbers."""
    state: Literal["passed", "missed", "undecided"]
    """Undecided: it would have passed, but the audit is inconclusive."""


def gate_results(
    report: AuditReport, gates: Sequence[Gate] = (), baseline: Baseline | None = None
) -> list[GateResult] | None:
    """Every result that the gates look at; None without gates."""
    if not gates and baseline is None:
        return None
    would_pass: Literal["passed", "undecided"] = "passed" if report.conclusive else "undecided"
    results = []
    for found in look(report, gates):
        name = f"worst case, {found.where}" if found.is_worst_case else found.where
        begins = f"the interval begins {'at or above' if found.passed else 'below'} {100 * found.gate.least:.4g}%"
        text = f"{name}: {found.result} of {found.result.count} images; {begins}"
        results.append(GateResult(GATE, text, would_pass if found.passed else "missed"))
    for paired in () if baseline is None else baseline.compare(report):
        state = would_pass if paired.passed else "missed"
        results.append(GateResult(BASELINE, f"against the baseline, {paired}", state))
    return results


def missed_of(results: Sequence[GateResult] | None) -> list[Finding] | None:
    """The gates that were missed; None without gates."""
    if results is None:
        return None
    return [Finding(one.rule, "error", one.text) for one in results if one.state == "missed"]


def findings(report: AuditReport, missed: Sequence[Finding] = ()) -> list[Finding]:
    """Everything that is wrong, gates first; ``missed`` are the gates that were missed."""
    failed = [
        Finding(ATTACK_FAILED, "error", f"{row.attack}, {row.route}, {row.threat}, {row.model} model: {row.error}")
        for row in report.rows
        if row.error
    ]
    return [*missed, *failed, *(Finding(flag.name, "warning", flag.evidence) for flag in report.flags)]
