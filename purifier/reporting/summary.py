"""What a report says in words: the verdict, the figures that carry it, and the limits of what it claims."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..attacking.threat import Threat
from ..auditing.report import AuditReport, Row, WorstCase
from ..auditing.statistics import Rate
from .findings import Finding

Light = Literal["good", "doubt", "bad", "plain"]
LOWER_BOUND = (
    "An attack that fails proves nothing: a stronger one may exist, so robustness is at most what is shown here. Only "
    "a certificate bounds it from below"
)
INTERVALS = (
    "Intervals are 95% Wilson intervals over images. They say how much other images of the same kind may differ, not "
    "what stronger attacks may find."
)
WEAKER_ROUTES = (
    "Only the routes exact and bpda are white-box. Figures of the routes oblivious and none are about attackers who "
    "know less."
)


@dataclass(frozen=True)
class Verdict:
    """The headline of a report."""

    light: Light
    title: str
    sentences: Sequence[str]


def verdict(report: AuditReport, missed: Sequence[Finding] | None = None) -> Verdict:
    """What the audit found, for people who know nothing of attacks.

    ``missed`` are the gates that were missed; None if there was no gate.
    """
    case, clean = worst_of(report), _clean_sentence(report)
    if case is None:
        return Verdict("doubt", "Nothing was attacked", [clean])
    doubts = _doubts(report)
    at_most = "at most " if doubts else ""
    by = " by queries only" if report.classifier.get("queries_only") else ""
    title = f"{at_most}{with_count(case.result)} stay {counted(report)} under attack{by}"
    sentences = [_worst_sentence(report, case), _knowledge(report, case.threat), clean]
    sentences += [
        f"Proven for every attack, known or not: {with_count(one.result)} stay {report.right} if an attacker may "
        f"{attacker(one.threat)}."
        for one in report.certificates
        if "certificate-broken" not in {flag.name for flag in report.flags}
    ]
    alone = _undefended(report, case.threat)
    if alone is not None:
        sentences.append(
            f"The classifier alone, without its guard, keeps {with_count(alone.result)} under the same attacks."
        )
    too_high = f"These figures may be too high: {', '.join(doubts)}."
    sentences.append(too_high if doubts else "No sign was found that these figures are too high.")
    if report.partial is not None:
        only = f"This report is about {report.partial} only. Signs that its figures are too high were not looked for."
        return Verdict("doubt", "Partial report, no verdict", [only, *sentences[:-1]])
    if missed:
        return Verdict("bad", f"Gate missed: {title}", sentences)
    if doubts:
        return Verdict("doubt", f"Inconclusive: {title}", sentences)
    return Verdict("plain", title, sentences) if missed is None else Verdict("good", f"Gate passed: {title}", sentences)


def _doubts(report: AuditReport) -> list[str]:
    """Why an audit is inconclusive; empty if it is conclusive."""
    found = [*dict.fromkeys(f"flag {flag.name}" for flag in report.flags)]
    found += [] if report.complete else ["an attack failed"]
    return found + ([] if report.probes else ["flags were not looked for"])


def worst_of(report: AuditReport) -> WorstCase | None:
    """The audited model's worst case over all threats and routes, of equal ones that of the largest budget; None if it
    was not attacked."""
    cases = [case for case in report.worst_case if (case.model, case.scope) == (report.model, "all")]
    return min(cases, key=lambda case: (case.result.share, -case.threat.eps), default=None)


def _undefended(report: AuditReport, threat: Threat) -> WorstCase | None:
    if report.model == "undefended":
        return None
    cases = (case for case in report.worst_case if (case.model, case.scope) == ("undefended", "all"))
    return next((case for case in cases if case.threat == threat), None)


def counted(report: AuditReport) -> str:
    """What an image is that counts under attack."""
    return report.right + " or rejected" * report.rejects


def model_name(model: str) -> str:
    """A model as people say it."""
    return "guarded classifier" if model == "guarded" else "undefended classifier"


def with_count(rate: Rate) -> str:
    """``45.0% [25.8, 65.8] of 20 images``: a share, its 95% interval, and of how many."""
    return f"{rate} of {rate.count} image{'s' * (rate.count != 1)}"


def attacker(threat: Threat) -> str:
    """What an attacker within a threat may do."""
    if threat.norm == "linf":
        return f"change every pixel value by up to {threat.eps:.4g} (values go from 0 to 1)"
    distance = "Euclidean distance" if threat.norm == "l2" else "sum of all changes"
    return f"change each image by up to {threat.eps:.4g} in {distance} (pixel values go from 0 to 1)"


def _worst_sentence(report: AuditReport, case: WorstCase) -> str:
    bound = "" if case.complete else " at most, because an attack failed"
    return (
        f"Against an attacker who may {attacker(case.threat)}, the {model_name(report.model)} is {counted(report)} on "
        f"{with_count(case.result)}{bound}, counting for each image the attack that hurts most."
    )


def _knowledge(report: AuditReport, threat: Threat) -> str:
    """How much the attackers behind the worst case knew."""
    why = report.classifier.get("queries_only")
    if why:
        return (
            f"No attack is white-box, because the classifier has no gradient to follow ({why}): all they do is ask for "
            "answers, and an attacker with gradients may do far better."
        )
    white_box = [case for case in report.worst_case if (case.model, case.scope) == (report.model, "white-box")]
    case = next((case for case in white_box if case.threat == threat), None)
    if case is None:
        return "No white-box attack is among them: none followed gradients through all that is audited."
    if not case.multi_step:
        return "The white-box attacks among them took a single step, which is hardly evidence."
    return f"White-box attacks alone, which know everything that is audited, leave {with_count(case.result)}."


def _clean_sentence(report: AuditReport) -> str:
    row = clean_row(report, report.model)
    if row is None or row.result is None:
        return "Clean images were not evaluated."
    accepted = " and accepted" * report.rejects
    text = (
        f"On clean images, without any attack, the {model_name(report.model)} is {report.right}{accepted} on "
        f"{with_count(row.result)}."
    )
    alone = clean_row(report, "undefended")
    if report.model == "undefended" or report.agreement or alone is None or alone.result is None:
        return text
    return f"{text[:-1]}; the classifier alone on {with_count(alone.result)}."


def clean_row(report: AuditReport, model: str) -> Row | None:
    """A model's row on clean images."""
    return next((row for row in report.rows if row.model == model and row.threat is None), None)


def limits(report: AuditReport) -> list[str]:
    """What the figures do not say."""
    tested = f"{', '.join(map(str, report.threats))} and these {report.data['count']} images"
    found = [
        f"The figures hold for {tested}. Larger changes, other norms, patches and other data were not tested.",
        f"{LOWER_BOUND}{'.' if report.certificates else ', and this is none.'}",
        INTERVALS,
        WEAKER_ROUTES,
    ]
    if report.agreement:
        found.append("The images have no labels: all figures are agreement with the undefended classifier.")
    if report.rejects:
        found.append("Under attack a rejected image counts as held; whether rejecting is safe depends on its use.")
    if report.partial is not None:
        found.append(f"The report is about {report.partial}. Signs of masked gradients were not looked for.")
    elif report.probes == 0:
        found.append("The report is older than the flags: signs of masked gradients were not looked for.")
    return [*found, *(f"Left out: {reason}" for reason in report.left_out)]


def date_text(report: AuditReport) -> str:
    """When the audit ended, in UTC."""
    return report.created.replace("T", " ").replace("+00:00", " UTC")


def command_text(report: AuditReport) -> str | None:
    """The command line that repeats the audit; None if it was run from Python."""
    return None if report.command is None else shlex.join(map(str, report.command))
