"""What an audit's table says once: notes, errors, and the figures of a classifier alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from audit_helpers import COUNT, Give, Queries, printed, rows
from purifier.auditing.audit import audit
from purifier.auditing.statistics import Rate
from purifier.guards.guard import guard


@dataclass(frozen=True)
class JointQueries(Queries):
    """Queries that also ask for the score."""

    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        target.logits_with_score(pixels)
        return super().perturb(target, pixels, labels, threat, generator)


def test_the_note_on_joint_attacks_knows_query_forms(classifier, data):
    found = audit(guard(classifier, "blur"), data, eps=0.05, attacks=(JointQueries(),), probes=2)
    assert "here with queries only, which prove less than gradients: JointQueries" in " ".join(printed(found).split())


def test_errors_are_named_once(classifier, data):
    def fail(pixels: Tensor, labels: Tensor) -> Tensor:
        raise ValueError("no such luck")

    for routes, count in ((None, 3), (("exact",), 2)):
        found = audit(guard(classifier, "blur"), data, eps=0.05, attacks=(Give(fail),), routes=routes, probes=2)
        assert printed(found).count("ValueError: no such luck") == count
    assert "Give:make" in printed(found) and "exact on the undefended classifier: ValueError" in printed(found)
    assert "ValueError: no such luck" in printed(audit(classifier, data, eps=0.05, attacks=(Give(fail),), probes=2))


def test_an_undefended_figure_stands_once_for_each_attack(classifier, data):
    found = audit(guard(classifier, "blur"), data, eps=0.05, attacks=("fgsm",), probes=2)
    (bare,) = rows(found, model="undefended", attack="fgsm")
    distinct = replace(bare, result=Rate(0.123, 7.38, COUNT, (0.1, 0.2)))
    shown = printed(replace(found, rows=[distinct if row is bare else row for row in found.rows]), 120)
    table = shown.split("linf 0.05\nattack")[1]
    assert table.count("12.3% [10.0, 20.0]") == 1
    (line,) = (line for line in table.splitlines() if "12.3%" in line)
    assert line.split()[:2] == ["fgsm", "exact"]
    assert "each attack has one figure, in its first row" in " ".join(shown.split())
