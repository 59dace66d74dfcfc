"""What changed between two audits."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from purifier.auditing.report import Flag
from purifier.reporting.difference import difference, print_difference


def printed(old, new) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_difference(difference(old, new), console)
    return console.file.getvalue()


def test_an_audit_does_not_differ_from_itself(healthy):
    found = difference(healthy, healthy)
    assert found.same_images and not found.facts and not found.raised and not found.gone
    assert {change.verdict for change in found.changes} == {"same"}
    assert {(change.lost, change.gained) for change in found.changes} == {(0, 0)}
    assert "the same was audited in the same way" in printed(healthy, healthy)


def test_images_that_were_lost_and_gained_are_counted(healthy, failing):
    found = difference(healthy, failing)
    name = ("guarded", "worst case, all", "", "linf 0.1")
    (change,) = [change for change in found.changes if change.name == name]
    worst = []
    for report in (healthy, failing):
        places = [
            place for place, row in enumerate(report.rows)
            if row.model == "guarded" and (row.threat is None or row.threat.eps == 0.1)
        ]  # fmt: skip
        worst.append(np.nanmin(report.results.counted[places], axis=0))
    assert change.lost == ((worst[0] == 1) & (worst[1] == 0)).sum()
    assert change.gained == ((worst[0] == 0) & (worst[1] == 1)).sum()
    assert change.lost - change.gained == change.old.correct - change.new.correct
    assert change.verdict == "worse" and found.raised == ["unbounded"] and found.gone == []
    assert ("purifier.config.encoder", "bounded", "free") in found.facts
    assert "new flag unbounded" in printed(healthy, failing)


def test_a_single_image_is_within_chance(healthy):
    counted = healthy.results.counted.copy()
    place = next(at for at, row in enumerate(healthy.rows) if row.model == "guarded" and row.threat is None)
    counted[place, int(counted[place].argmax())] = 0
    results = dataclasses.replace(healthy.results, counted=counted)
    row = healthy.rows[place]
    rate = dataclasses.replace(row.result, correct=row.result.correct - 1, share=row.result.share - 0.05)
    rows = [*healthy.rows]
    rows[place] = dataclasses.replace(row, result=rate)

    class Kept:
        pass

    kept = Kept()
    kept.results = results
    changed = dataclasses.replace(healthy, rows=rows, details=kept)
    found = {change.name: change for change in difference(healthy, changed).changes}
    change = found["guarded", "clean images", "", ""]
    assert (change.lost, change.gained, change.verdict) == (1, 0, "within chance")


def test_reports_of_other_images_are_compared_by_their_intervals(healthy, old_reports):
    found = difference(old_reports[-1], healthy)
    assert not found.same_images or all(change.lost is None for change in found.changes)
    other = dataclasses.replace(healthy, data={**healthy.data, "sha256": "0" * 64})
    found = difference(healthy, other)
    assert not found.same_images and all(change.lost is None for change in found.changes)
    assert "the images differ" in printed(healthy, other)


def test_a_flag_that_is_gone_is_named(healthy):
    old = dataclasses.replace(healthy, flags=[Flag("stateful", "x")])
    assert "flag gone stateful" in printed(old, healthy)


@pytest.mark.parametrize("order", [1, -1])
def test_figures_of_one_report_only_are_named(healthy, order):
    fewer = dataclasses.replace(healthy, rows=healthy.rows[:2], worst_case=[])
    old, new = (healthy, fewer)[::order]
    verdicts = {change.verdict for change in difference(old, new).changes}
    assert verdicts == {"same", "only in the old" if order == 1 else "only in the new"}
