"""The gate against an earlier audit: no more images wrong than then, by a paired test on the same images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..attacking.threat import Threat
from ..data.images import ImageData
from ..errors import ConfigError, FileError
from .data_digest import DataDigest
from .report import FILE_NAME, WHITE_BOX, AuditReport
from .results import RESULTS_FILE
from .statistics import PairedDifference, Rate, images_needed, paired_difference

TOLERANCE = 0.02
DIGESTED = 250
"""Images that are hashed at a time."""


@dataclass(frozen=True)
class PairedResult:
    """One share of images in an earlier audit and now."""

    where: str
    """``clean images``, or the threat of a worst case such as ``linf 0.1``."""
    before: Rate
    now: Rate
    difference: PairedDifference
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the share has fallen by no more than the tolerance, with 95% confidence."""
        return self.difference.lower >= -self.tolerance

    def __str__(self) -> str:
        """``linf 0.1: 40.0% [..] of 200 images, 42.0% [..] of 200 images before (9 lost, 5 gained); ...``."""
        fallen = max(0.0, -100 * self.difference.lower)
        lost, gained = self.difference.lost, self.difference.gained
        return (
            f"{self.where}: {self.now} of {self.now.count} images, {self.before} of {self.before.count} images before "
            f"({lost:.4g} lost, {gained:.4g} gained); with 95% confidence it fell by at most {fallen:.2f} points, "
            f"tolerance {100 * self.tolerance:.4g}"
        )


@dataclass(frozen=True)
class Baseline:
    """An earlier audit, and by how much a share of images may have fallen since.

    Raises
    ------
    ConfigError
        The tolerance is no share above 0, or could not be shown on so few images even if no image changed.
    FileError
        The audit did not keep the results of its images, or its report is about a part of them.
    """

    report: AuditReport
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if not 0 < self.tolerance <= 1:
            raise ConfigError(f"tolerance: expected a share of images above 0, such as 0.02, got {self.tolerance}")
        if self.report.partial is not None:
            raise FileError(
                f"baseline: expected the report of a whole audit, got {self.report.partial}; run its command again to "
                "end it, or merge its shards with `purifier report merge`",
                FILE_NAME,
            )
        if self.report.results is None or self.report.data["sha256"] is None:
            raise FileError(
                "baseline: expected results.npz beside report.json, because images are compared one by one; copy it "
                "there, or run that audit again",
                RESULTS_FILE,
            )
        count, needed = self.report.data["count"], images_needed(self.tolerance)
        if count < needed:
            raise ConfigError(
                f"tolerance: {self.tolerance:g} needs at least {needed} images, and the baseline has {count}: even if "
                "none of them changed, other images may have; audit more, or choose a larger tolerance"
            )

    def check_threats(self, threats: Sequence[Threat]) -> None:
        """Raise ``ConfigError`` unless these are the baseline's threats, in any order."""
        if set(threats) != set(self.report.threats):
            raise ConfigError(
                f"baseline: expected an audit of the same threats, but it is of {_listed(self.report.threats)}, and "
                f"this one of {_listed(threats)}; change --norm and --eps, or choose another baseline"
            )

    def check_attacks(self, names: set[str]) -> None:
        """Raise ``ConfigError`` if the baseline ran attacks that are not among these names, whatever their options."""
        missing = {row.attack.partition(":")[0] for row in self.report.rows if row.threat is not None} - names
        if missing:
            raise ConfigError(
                f"baseline: it ran {_listed(sorted(missing))}, and this audit does not, so its worst case would look "
                "better; run the same attacks, or choose another baseline"
            )

    def check_data(self, data: ImageData) -> None:
        """Raise ``ConfigError`` unless these are the baseline's images and labels; labels only if they have any."""
        if len(data) != self.report.data["count"] or not data.labelled:
            self._check_facts({"count": len(data)})
            return
        self._check_facts(DataDigest(data, DIGESTED).facts())

    def compare(self, report: AuditReport) -> list[PairedResult]:
        """Clean images and each threat's worst case over all routes, on the audited models.

        That all of them pass is one test at 95%: the chance that a change which is worse than tolerated in any of them
        passes all is at most 5% (an intersection-union test, Berger 1982).

        Raises
        ------
        ConfigError
            The audits are of different images, labels or threats, count different things as right, or the new one left
            out an attack or route of the baseline.
        FileError
            A file of results is damaged, or missing beside the new report.
        """
        old = self.report
        self._check_facts(report.data)
        self.check_threats(report.threats)
        if (old.rejects, old.agreement) != (report.rejects, report.agreement):
            raise ConfigError(
                f"baseline: expected an audit that counts the same, but it counts images that are {_counted(old)}, "
                f"and this one images that are {_counted(report)}; choose another baseline"
            )
        _check_effort(old, report)
        found = []
        for threat in (None, *report.threats):
            before, now = _rate(old, threat), _rate(report, threat)
            if before is not None and now is not None:  # neither is of clean images only
                where = "clean images" if threat is None else str(threat)
                difference = paired_difference(_shares(old, threat), _shares(report, threat))
                found.append(PairedResult(where, before, now, difference, self.tolerance))
        return found

    def _check_facts(self, facts: Mapping[str, object]) -> None:
        for name, what in (("count", "number of images"), ("sha256", "SHA-256 of images and labels")):
            if name in facts and facts[name] != self.report.data[name]:
                raise ConfigError(
                    f"baseline: expected the same images, but its {what} is {self.report.data[name]}, and here it is "
                    f"{facts[name]}; audit the images of the baseline ({self.report.data['name']}), or choose another"
                )


def check_baseline(
    report: AuditReport, baseline: AuditReport | str | Path, tolerance: float = TOLERANCE
) -> list[PairedResult]:
    """Compare an audit with an earlier one of the same images: has a share of right images fallen?

    Parameters
    ----------
    report
        The new audit.
    baseline
        The earlier one, or its folder. Its classifier and purifier may be others; its images, labels, threats and
        attacks must be the same. The new audit may have further attacks.
    tolerance
        By how much the share of right images may have fallen, above 0: 0.02 for two of 100 images.

    Returns
    -------
    One result for clean images and one for each threat's worst case over all routes, with ``passed``: whether the
    share has, with 95% confidence, fallen by no more than the tolerance. This is a one-sided test of non-inferiority on
    the same images (Tango 1998; at a tolerance of 0 it would be McNemar's test). ``difference`` has the numbers of
    images lost and gained, and the bound.

    Raises
    ------
    ConfigError, FileError
        The audits cannot be compared: the message says what differs.
    """
    found = baseline if isinstance(baseline, AuditReport) else AuditReport.load(baseline)
    return Baseline(found, tolerance).compare(report)


def _check_effort(old: AuditReport, new: AuditReport) -> None:
    """Raise ``ConfigError`` if the new audit attacked less."""
    missing = _efforts(old, new.model) - _efforts(new, new.model)
    if missing:
        attack, _, route = min(missing)
        raise ConfigError(
            f"baseline: it ran {attack} along {route}, and this audit did not, so its worst case may look better; run "
            "the same attacks along the same routes, or choose another baseline"
        )
    if (new.purifier or {}).get("random") and (old.purifier or {}).get("random") and new.eot < old.eot:
        raise ConfigError(
            f"baseline: it averaged gradients over {old.eot} draws, and this audit over {new.eot}, so its worst case "
            f"may look better; use --eot {old.eot}, or choose another baseline"
        )


def _efforts(report: AuditReport, model: str) -> set[tuple[str, str, str]]:
    """What attacked the audited model: name, options, and kind of route.

    Which of the white-box routes exist depends on the purifier, and a classifier alone has none that is oblivious.
    """
    found = set()
    for row in report.rows:
        if row.model == report.model and row.threat is not None and row.error is None:
            route = "a white-box route" if row.route in WHITE_BOX else f"the route {row.route}"
            if model == "guarded" or row.route != "oblivious":
                found.add((row.attack.partition(":")[0], json.dumps(row.options, sort_keys=True), route))
    return found


def _counted(report: AuditReport) -> str:
    return report.right + " or rejected" * report.rejects


def _listed(parts: Sequence[object]) -> str:
    return ", ".join(map(str, parts)) or "none"


def _of_model(report: AuditReport, threat: Threat | None) -> list[int]:
    """Positions of the audited model's rows on clean images, and within a threat."""
    return [
        place for place, row in enumerate(report.rows) if row.model == report.model and row.threat in (None, threat)
    ]


def _shares(report: AuditReport, threat: Threat | None) -> Tensor:
    """The smallest share of each image over these rows, (N,)."""
    if report.results is None:
        raise FileError("expected results.npz beside the new report.json; run the audit again", RESULTS_FILE)
    return torch.from_numpy(report.results.worst(_of_model(report, threat)))


def _rate(report: AuditReport, threat: Threat | None) -> Rate | None:
    """The share of clean images, or the worst case over all routes."""
    if threat is None:
        (place,) = _of_model(report, None)
        return report.rows[place].result
    cases = [case for case in report.worst_case if (case.model, case.scope) == (report.model, "all")]
    return next((case.result for case in cases if case.threat == threat), None)
