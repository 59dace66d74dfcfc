"""The gate against an earlier audit: what passes, what fails, and which audits cannot be compared."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import purifier
from purifier.attacking.threat import Threat
from purifier.auditing.audit import audit
from purifier.auditing.baseline import Baseline
from purifier.auditing.partial import Partial
from purifier.auditing.report import OWN_ANSWERS, AuditReport
from purifier.auditing.statistics import paired_lower, rate
from purifier.data.images import ImageData
from purifier.errors import ConfigError, FileError
from purifier.guards.guard import guard

LOOSE = 0.2
"""A tolerance that can be shown on the few images here."""


@pytest.fixture(scope="module")
def few(data) -> ImageData:
    return ImageData("few", *data.batch(range(30)))


@pytest.fixture(scope="module")
def kept(classifier, few, tmp_path_factory) -> AuditReport:
    folder = tmp_path_factory.mktemp("baseline")
    audit(guard(classifier, "blur"), few, eps=[0.02, 0.05], attacks=("fgsm", "noise"), probes=6, out=folder)
    return AuditReport.load(folder)


def with_shares(report: AuditReport, change) -> AuditReport:
    """The report with other results of its images on the guard; ``change`` is given each row and its shares (N,)."""
    counted = report.results.counted.copy()
    for place, row in enumerate(report.rows):
        if row.model == "guarded":
            counted[place] = change(row, counted[place].copy())
    found = dataclasses.replace(report.results, counted=counted)
    rows = [
        dataclasses.replace(row, result=rate(float(shares.sum()), len(shares)))
        for row, shares in zip(report.rows, counted, strict=True)
    ]
    return dataclasses.replace(report, rows=rows, details=SimpleNamespace(results=found))


def test_an_audit_passes_against_itself(kept):
    found = purifier.check_baseline(kept, kept, LOOSE)
    assert [one.where for one in found] == ["clean images", "linf 0.02", "linf 0.05"]
    for one in found:
        assert one.passed and one.now == one.before
        assert (one.difference.lost, one.difference.gained, one.difference.value) == (0, 0, 0)
    cases = {
        str(case.threat): case.result for case in kept.worst_case if (case.model, case.scope) == ("guarded", "all")
    }
    assert {one.where: one.now for one in found[1:]} == cases


def test_images_are_compared_one_by_one_in_the_worst_case(kept):
    threat = Threat("linf", 0.05)
    places = [
        place
        for place, row in enumerate(kept.rows)
        if row.model == "guarded" and row.threat in (None, threat)
    ]  # fmt: skip
    held = int(kept.results.counted[places].min(0).argmax())
    assert kept.results.counted[places].min(0)[held] == 1

    def change(row, shares):
        if row.threat == threat and row.attack == "noise":
            shares[held] = 0  # wrong under one of the attacks is wrong
        return shares

    found = {one.where: one for one in purifier.check_baseline(with_shares(kept, change), kept, LOOSE)}
    assert {where: one.difference.lost for where, one in found.items()} == {
        "clean images": 0, "linf 0.02": 0, "linf 0.05": 1,
    }  # fmt: skip


@pytest.mark.parametrize("lost", range(8))
def test_it_passes_while_the_bound_is_within_the_tolerance(kept, lost):
    def change(row, shares):
        if row.threat is None:
            shares[np.flatnonzero(shares)[:lost]] = 0
        return shares

    clean = purifier.check_baseline(with_shares(kept, change), kept, LOOSE)[0]
    assert (clean.difference.lost, clean.difference.gained) == (lost, 0)
    assert clean.difference.lower == paired_lower(0, lost, 30)
    assert clean.passed == (paired_lower(0, lost, 30) >= -LOOSE)
    assert f"({lost} lost, 0 gained)" in str(clean) and "30 images before" in str(clean)


def test_the_tolerance_decides(kept):
    def change(row, shares):
        shares[np.flatnonzero(shares)[:2]] = 0
        return shares

    worse = with_shares(kept, change)
    assert not purifier.check_baseline(worse, kept, 0.1)[0].passed
    assert purifier.check_baseline(worse, kept, 0.3)[0].passed
    assert purifier.check_baseline(kept, worse, 0.1)[0].passed  # better is always within it


def test_a_part_of_an_audit_is_no_baseline(kept):
    part = dataclasses.replace(kept, partial=Partial(0, 30, 60, "stopped by SIGTERM"))
    with pytest.raises(FileError, match=r"got images 0 to 29 of 60 \(stopped by SIGTERM\); run its command again"):
        purifier.check_baseline(kept, part, LOOSE)


def test_a_baseline_is_read_from_its_folder(kept, tmp_path):
    kept.save(tmp_path)
    assert purifier.check_baseline(kept, tmp_path, LOOSE) == purifier.check_baseline(kept, kept, LOOSE)
    (tmp_path / "results.npz").unlink()
    with pytest.raises(FileError, match=r"baseline: expected results.npz beside report.json"):
        purifier.check_baseline(kept, tmp_path, LOOSE)
    with pytest.raises(FileError, match=r"expected results.npz beside the new report.json"):
        purifier.check_baseline(AuditReport.load(tmp_path), kept, LOOSE)


def changed(report: AuditReport, **facts: object) -> AuditReport:
    return dataclasses.replace(report, **facts)


def test_audits_of_something_else_are_not_compared(kept):
    data = kept.data
    cases = [
        (changed(kept, data={**data, "sha256": "0" * 64}), "its SHA-256 of images and labels is 000000"),
        (changed(kept, data={**data, "count": 31}), "its number of images is 31, and here it is 30"),
        (changed(kept, threats=[Threat("linf", 0.02)]), "it is of linf 0.02, and this one of linf 0.02, linf 0.05"),
        (changed(kept, threats=[Threat("l2", 0.02), Threat("linf", 0.05)]), "it is of l2 0.02, linf 0.05"),
        (changed(kept, data={**data, "labels": OWN_ANSWERS}), "images that are in agreement"),
        (changed(kept, rows=[dataclasses.replace(row, rejected=row.result) for row in kept.rows]), "right or rejected"),
    ]  # fmt: skip
    for old, message in cases:
        with pytest.raises(ConfigError, match=message):
            purifier.check_baseline(kept, old, LOOSE)
    without = changed(kept, data={**data, "sha256": None})
    with pytest.raises(FileError, match="run that audit again"):
        purifier.check_baseline(kept, without, LOOSE)


def test_an_audit_that_attacked_less_is_not_compared(kept):
    for left_out, message in (
        (("noise",), "noise along the route none"),
        (("exact", "bpda"), "fgsm along a white-box route"),
        (("oblivious",), "fgsm along the route oblivious"),
    ):
        fewer = changed(kept, rows=[row for row in kept.rows if not {row.attack, row.route} & {*left_out}])
        with pytest.raises(ConfigError, match=f"baseline: it ran {message}, and this audit did not"):
            Baseline(kept, LOOSE).compare(fewer)
        assert all(one.passed for one in compared_without_results(kept, fewer))
    weaker = changed(kept, rows=[dataclasses.replace(row, options={**row.options, "steps": 1}) for row in kept.rows])
    with pytest.raises(ConfigError, match="this audit did not"):
        Baseline(kept, LOOSE).compare(weaker)
    random = {**kept.purifier, "random": True}
    with pytest.raises(ConfigError, match="over 10 draws, and this audit over 2, .* use --eot 10"):
        Baseline(changed(kept, purifier=random, eot=10), LOOSE).compare(changed(kept, purifier=random, eot=2))


def compared_without_results(new: AuditReport, old: AuditReport) -> list:
    """An audit with further attacks passes; the old one keeps the rows that it has."""
    places = [new.rows.index(row) for row in old.rows]
    results = dataclasses.replace(new.results, counted=new.results.counted[places])
    return Baseline(changed(old, details=SimpleNamespace(results=results)), 0.9).compare(new)


def test_a_tolerance_that_so_few_images_cannot_show_is_an_error(kept):
    with pytest.raises(ConfigError, match="tolerance: 0.02 needs at least 133 images, and the baseline has 30"):
        purifier.check_baseline(kept, kept)
    for wrong in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="tolerance: expected a share of images above 0"):
            purifier.check_baseline(kept, kept, wrong)


def test_what_differs_is_found_before_anything_runs(kept, few):
    baseline = Baseline(kept, LOOSE)
    baseline.check_data(few)
    baseline.check_threats([Threat("linf", 0.05), Threat("linf", 0.02)])
    baseline.check_attacks({"fgsm", "noise", "pgd"})
    pixels, labels = few.batch(range(30))
    others = [
        ImageData("fewer", pixels[:20], labels[:20]),
        ImageData("relabelled", pixels, 9 - labels),
        ImageData("moved", pixels.flip(0), labels.flip(0)),
    ]
    for other in others:
        with pytest.raises(ConfigError, match="expected the same images"):
            baseline.check_data(other)
    with pytest.raises(ConfigError, match="this one of linf 0.05"):
        baseline.check_threats([Threat("linf", 0.05)])
    with pytest.raises(ConfigError, match="it ran noise, and this audit does not"):
        baseline.check_attacks({"fgsm"})


def test_a_baseline_of_clean_images_compares_clean_images(classifier, few):
    clean = audit(guard(classifier, "blur"), few, eps=[0.02, 0.05], attacks=())
    assert [one.where for one in purifier.check_baseline(clean, clean, LOOSE)] == ["clean images"]


def test_another_guard_is_compared_and_so_is_the_classifier_alone(classifier, few, kept):
    options = {"eps": [0.02, 0.05], "attacks": ("fgsm", "noise"), "probes": 6}
    for model in (guard(classifier, "identity"), classifier):
        other = audit(model, few, **options)
        found = purifier.check_baseline(other, kept, LOOSE)[0]
        pixels, labels = few.batch(range(30))
        with torch.no_grad():
            right = [(one(pixels).argmax(1) == labels) for one in (guard(classifier, "blur"), classifier)]
        assert found.difference.lost == int((right[0] & ~right[1]).sum())
        assert found.difference.gained == int((right[1] & ~right[0]).sum())
        purifier.check_baseline(kept, other, LOOSE)
