"""The gates of ``purifier audit``: the values of their options, and how a command ends because of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from ..attacking.threat import Threat
from ..auditing.baseline import TOLERANCE, Baseline, PairedResult
from ..auditing.gates import ROBUST, Gate, Passed, look
from ..auditing.report import AuditReport, check_gate
from ..errors import ConfigError, FileError
from ..foreign_code import Attempt
from ..vocabulary import Norm
from .console import FAILED, INCONCLUSIVE


def read_gate(text: str) -> Gate:
    """``0.6`` -> the worst case; ``clean=0.85``, ``pgd:steps=20=0.65`` -> what is named."""
    what, equals, share = text.rpartition("=")
    try:
        gate = Gate(what if equals else ROBUST, float(share))
    except ValueError:
        raise ConfigError(
            "--fail-under: expected a share of images in [0, 1] such as 0.6, or NAME=SHARE such as clean=0.85, got "
            f"{text!r}"
        ) from None
    check_gate(gate.least, "--fail-under")
    return gate


def read_baseline(
    path: Path | None, tolerance: float | None, norm: Norm, budgets: Sequence[float], attacks: set[str]
) -> Baseline | None:
    """The values of ``--baseline`` and ``--tolerance``, checked for an audit within these budgets by attacks of these
    names; None if they were not given."""
    found = compared_with(path, tolerance)
    if found is not None:
        found.check_threats([Threat(norm, budget) for budget in budgets])
        found.check_attacks(attacks)
    return found


def compared_with(path: Path | None, tolerance: float | None) -> Baseline | None:
    """The values of ``--baseline`` and ``--tolerance``; None if they were not given."""
    if path is not None:
        return Baseline(AuditReport.load(path), TOLERANCE if tolerance is None else tolerance)
    if tolerance is not None:
        raise ConfigError("--tolerance needs --baseline, the folder of the audit to compare with")
    return None


def end(report: AuditReport, gates: Sequence[Gate], baseline: Baseline | None, console: Console) -> None:
    """Exit with the code for the result of the report."""
    found = look(report, gates)
    failed = [f"{_lower(report, one)}, less than {_least(one)}" for one in found if not one.passed]
    paired: list[PairedResult] = []
    if baseline is not None:
        with Attempt((ConfigError, FileError)) as comparing:
            paired = baseline.compare(report)
        if comparing.error is not None:
            if not failed:
                raise comparing.error
            _say(console, f"not compared with the baseline: {comparing.error}")
    failed += [str(one) for one in paired if not one.passed]
    for text in failed:
        _say(console, f"gate failed, {text}")
    if failed:  # even if flags were raised: robustness is no higher than the audit found
        raise typer.Exit(FAILED)
    attacked = any(gate.needs_attacks for gate in gates) or len(paired) > 1
    untested = _untested(report, console) if attacked else False
    if (gates or paired) and not untested and not report.conclusive:
        _say(console, "gate undecided: the audit is inconclusive, see above")
    if untested or not report.conclusive:
        raise typer.Exit(INCONCLUSIVE)
    for one in found:
        _say(console, f"gate passed, {_lower(report, one)}, at least {_least(one)}")
    for pair in paired:
        _say(console, f"gate passed, {pair}")


def _untested(report: AuditReport, console: Console) -> bool:
    """Whether a threat has no white-box attack that takes steps, so that no gate on it proves anything."""
    cases = [case for case in report.worst_case if case.scope == "white-box" and case.model == report.model]
    white_box = {case.threat: case.multi_step for case in cases}
    untested = [threat for threat in report.threats if not white_box.get(threat)]
    for threat in untested:
        ran = "only one-step attacks ran" if threat in white_box else "no white-box attack ran"
        advice = "add one that takes steps, such as --attack pgd, or use a preset"
        if report.classifier.get("queries_only"):
            advice = "the classifier gives no gradients for one (see above), so audit its torch module instead"
        _say(console, f"gate undecided, {threat}: {ran}, so the result proves nothing; {advice}")
    return bool(untested)


def _lower(report: AuditReport, found: Passed) -> str:
    counted = report.right + " or rejected" * report.rejects
    case = " in the worst case" * found.is_worst_case
    return (
        f"{found.where}: the 95% interval of images that are {counted}{case} begins at {found.result.interval[0]:.1%}"
    )


def _least(found: Passed) -> str:
    named = "" if found.is_worst_case else f" {found.gate.what}"
    return f"the {found.gate.least:.1%} of --fail-under{named}"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
