"""What the tests of journals and shards share: a short audit, and reports without what differs from run to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import purifier
from purifier.auditing.audit import audit
from purifier.auditing.details import vars_of
from purifier.auditing.report import AuditReport

SHORT: dict[str, Any] = {"eps": 0.05, "attacks": ("fgsm", "pgd:steps=2", "noise"), "batch_size": 20, "probes": 1}
"""Three batches of 20 images; the jobs are 7, on the guard and on the undefended classifier."""


def same(one: AuditReport, other: AuditReport) -> bool:
    """Whether two reports, and what is kept beside them, are the same but for times and the command."""
    arrays = all(
        np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f")
        for mine, theirs in zip(arrays_of(one), arrays_of(other), strict=True)
    )
    return arrays and lasting(one) == lasting(other)


def arrays_of(report: AuditReport) -> list[np.ndarray]:
    """All arrays of a report's results and examples, if it has examples."""
    kept = [found for found in (report.results, report.examples) if found is not None]
    return [array for found in kept for array in vars_of(found).values()]


def lasting(report: AuditReport) -> dict[str, Any]:
    """The report's JSON without times and the command."""
    found = json.loads(report.to_json())
    for row in found["rows"]:
        del row["seconds"]
    return {name: value for name, value in found.items() if name not in ("created", "command")}


class Stop:
    """A ``progress`` that raises an error once this share of the audit is done."""

    def __init__(self, error: BaseException, share: float) -> None:
        self.error, self.share = error, share

    def __call__(self, done: float, total: int, what: str) -> None:
        if done >= self.share * total:
            raise self.error


def cut_off(guarded: Any, data: Any, out: Path, error: BaseException, share: float, **options: Any) -> None:
    """Run the short audit until this share of it is done."""
    try:
        audit(guarded, data, **{**SHORT, **options}, out=out, progress=Stop(error, share))
    except type(error):
        return
    raise AssertionError(f"the audit ended before a share of {share} was done")


@dataclass(frozen=True)
class Counting(purifier.Attack):
    """Returns the images as they are, and counts how often it was asked."""

    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    asked: ClassVar[list[int]] = []

    def perturb(self, target, pixels, labels, threat, generator):
        self.asked.append(len(pixels))
        return pixels


@dataclass(frozen=True)
class FailsLate(purifier.Attack):
    """Fails on the batch that has the image ``at``."""

    at: float = 0.0
    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        if any(abs(float(one.mean()) - self.at) < 1e-7 for one in pixels):
            raise RuntimeError("out of luck")
        return pixels
