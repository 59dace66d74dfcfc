"""Gates: the least shares of images that must stay right, on lower confidence bounds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .judging import CLEAN
from .report import AuditReport
from .statistics import Rate

ROBUST, ON_CLEAN = "robust", "clean"


@dataclass(frozen=True)
class Gate:
    """The least share of images that must be right, for one kind of result.

    Parameters
    ----------
    what
        ``robust``: the worst case over all routes, within each threat. ``clean``: clean images. Otherwise the name or
        the spec of an attack: each of its rows on the audited model.
    least
        A share in [0, 1], which the 95% interval must not reach below.
    """

    what: str
    least: float

    @property
    def needs_attacks(self) -> bool:
        """Whether it is about images under attack."""
        return self.what != ON_CLEAN

    def check_attacks(self, names: Collection[str]) -> None:
        """Raise ``ConfigError`` if it names an attack that is not among these names and specs."""
        if self.what not in (ROBUST, ON_CLEAN) and self.what not in names:
            raise ConfigError(
                f"--fail-under {self.what}={self.least:g}: expected {ROBUST}, {ON_CLEAN} or an attack of this audit "
                f"({', '.join(sorted(names)) or 'none'}), got {self.what!r}"
            )


@dataclass(frozen=True)
class Passed:
    """One result that a gate looked at."""

    gate: Gate
    where: str
    """The threat and what was counted, such as ``linf 0.1`` or ``pgd exact linf 0.1``."""
    result: Rate
    is_worst_case: bool

    @property
    def passed(self) -> bool:
        """Whether the whole interval lies at or above the gate."""
        return self.result.interval[0] >= self.gate.least


def look(report: AuditReport, gates: Sequence[Gate]) -> list[Passed]:
    """What the gates find in a report of an audit, in their order.

    Raises
    ------
    ConfigError
        A gate is about an attack that the report does not have.
    """
    found = []
    for gate in gates:
        of_gate = list(_results(report, gate))
        if not of_gate:
            names = {row.attack for row in report.rows if row.threat is not None}
            gate.check_attacks(names | {name.partition(":")[0] for name in names})
            raise ConfigError("a gate needs an attack on the audited model; add one, or leave the gate out")
        found += of_gate
    return found


def _results(report: AuditReport, gate: Gate) -> list[Passed]:
    if gate.what == ROBUST:
        cases = [case for case in report.worst_case if case.model == report.model and case.scope == "all"]
        return [Passed(gate, str(case.threat), case.result, True) for case in cases]
    found = []
    for row in report.rows:
        if row.model != report.model or row.result is None:
            continue
        if gate.what == ON_CLEAN and row.attack == CLEAN and row.threat is None:
            found.append(Passed(gate, "clean images", row.result, False))
        elif row.threat is not None and gate.what in (row.attack, row.attack.partition(":")[0]):
            found.append(Passed(gate, f"{row.attack} {row.route} {row.threat}", row.result, False))
    return found
