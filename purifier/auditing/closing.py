"""The report of an audit from what was found: in this process, or in the journals of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..attacking.threat import Threat
from .comparing import DECISIVE_JUDGEMENTS, compare
from .counting import PendingRow, finished_rows, worst_cases
from .keeping import Purify
from .measured import flags_of_results, stronger_self_checks, weak_attacks
from .outcome import Record
from .partial import Partial
from .proof_check import broken_proofs, certificates_of
from .report import AuditReport, Flag, WorstCase
from .self_checks import Attacked, SelfChecks
from .tally import Tally


@dataclass(frozen=True)
class Checked:
    """What the self-checks found, before the attacks and after them."""

    before: Sequence[Flag] = ()
    checks: SelfChecks | None = None
    """None if nothing was attacked."""
    after: Sequence[Flag] = ()

    def record(self) -> Record:
        """As a journal keeps it."""
        checks = self.checks
        values: dict[str, Any] = {
            "before": [dataclasses.asdict(flag) for flag in self.before],
            "after": [dataclasses.asdict(flag) for flag in self.after],
            "checks": None,
        }
        if checks is None:
            return values, {}
        values["checks"] = {
            "flags": [dataclasses.asdict(flag) for flag in checks.flags],
            "gradient_check": checks.gradient_check,
            "attacked": [
                {
                    "attack": one.attack,
                    "threat": dataclasses.asdict(one.threat),
                    "route": one.route,
                    "indices": list(one.indices),
                }
                for one in checks.attacked
            ],
        }
        return values, {str(place): one.shares.cpu() for place, one in enumerate(checks.attacked)}

    @classmethod
    def read(cls, record: Record) -> Checked:
        """From what ``record`` gave."""
        values, tensors = record
        before, after = ([Flag(**flag) for flag in values[name]] for name in ("before", "after"))
        found = values["checks"]
        if found is None:
            return cls(before, None, after)
        attacked = [
            Attacked(**{**one, "threat": Threat(**one["threat"]), "shares": tensors[str(place)]})
            for place, one in enumerate(found["attacked"])
        ]
        flags = [Flag(**flag) for flag in found["flags"]]
        return cls(before, SelfChecks(flags, attacked, found["gradient_check"]), after)


def report_of(tally: Tally, checked: Checked, purify: Purify, *, why_partial: str | None = None) -> AuditReport:
    """The report of what ``tally`` has counted; of a part of the images if ``why_partial`` says why.

    A partial report raises no flags: most look at all images together, and one part knows nothing of the others.
    """
    about, rows, labels = tally.about, tally.rows, tally.labels
    facts = dict(about.facts)
    judgements, eot, calibration = facts["judgements"], facts["eot"], facts["calibration"]
    cases = worst_cases(rows, about.routes, judgements, eot)
    span = range(about.span.start, about.span.start + len(labels))
    if why_partial is not None:
        facts["data"] = {**facts["data"], **_counted(labels.tolist())}
        facts["probes"] = 0  # no flags were looked for
    created = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"created": created, "data_sha256": facts["data"]["sha256"]}
    checks = checked.checks
    return AuditReport(
        **{**facts, "threats": [Threat(**threat) for threat in facts["threats"]]},
        created=created,
        flags=_flags(tally, cases, checked) if why_partial is None else [],
        worst_case=cases,
        gradient_check=None if checks is None else checks.gradient_check,
        rows=finished_rows(rows, calibration and calibration["threshold"], judgements, eot),
        partial=None if why_partial is None else Partial(span.start, span.stop, about.total, why_partial),
        certificates=certificates_of(tally.proven, _clean(tally), [Threat(**one) for one in facts["threats"]]),
        details=tally.keeper.details(rows, labels, span.start, purify, owner),
    )


def _clean(tally: Tally) -> PendingRow:
    return next(row for row in tally.rows if row.job is None and row.model == tally.about.model)


def _counted(labels: Sequence[int]) -> dict[str, Any]:
    classes = {str(label): labels.count(label) for label in sorted(set(labels))}
    return {"count": len(labels), "classes": classes}


def _flags(tally: Tally, cases: Sequence[WorstCase], checked: Checked) -> list[Flag]:
    about, rows, checks = tally.about, tally.rows, checked.checks
    own = [row for row in rows if row.model == about.model]
    threats = [Threat(**one) for one in about.facts["threats"]]
    broken = broken_proofs(tally.proven, _clean(tally), own, threats)
    of_results = [*flags_of_results(rows, tally.labels, about), *broken]
    if checks is None:
        return list(dict.fromkeys([*checked.before, *of_results, *checked.after]))
    judgements, eot = about.facts["judgements"], about.facts["eot"]
    decisive = not about.random or judgements >= DECISIVE_JUDGEMENTS
    return [
        *checked.before,
        *checks.flags,
        *of_results,
        *stronger_self_checks(rows, checks.attacked, about.model, eot),
        *weak_attacks(rows, cases, about),
        *compare(rows, about.routes, decisive=decisive),
        *dict.fromkeys(checked.after),
    ]
