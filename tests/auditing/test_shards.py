"""An audit in shards: each is a partial report, and together they are the report of one process."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from journal_helpers import SHORT, FailsLate, cut_off, same

from audit_helpers import NoConfig, Noisy
from purifier.auditing.audit import audit
from purifier.auditing.report import AuditReport
from purifier.auditing.shards import merge_audits, span_of
from purifier.errors import ConfigError, FileError, OutputError
from purifier.guards.guard import guard


def run_shards(guarded, data, folder: Path, count: int, **options) -> list[Path]:
    parts = [folder / str(k) for k in range(1, count + 1)]
    for k, part in enumerate(parts, 1):
        audit(guarded, data, **{**SHORT, **options}, out=part, shard=(k, count))
    return parts


@pytest.fixture(scope="module")
def guarded(classifier):
    return guard(classifier, "blur")


@pytest.fixture(scope="module")
def parts(guarded, data, tmp_path_factory) -> list[Path]:
    """The folders of three shards."""
    return run_shards(guarded, data, tmp_path_factory.mktemp("shards"), 3)


def test_three_shards_give_the_report_of_one_process_in_any_order(guarded, data, parts):
    expected = audit(guarded, data, **SHORT)
    for folders in itertools.permutations(parts):
        merged = merge_audits(folders)
        assert same(merged, expected)
        assert merged.partial is None and merged.data == expected.data


def test_shards_keep_the_examples_that_one_process_would_keep(guarded, data, tmp_path):
    # Weaker attacks come after stronger ones, so that images which fell hold later; most of them fall.
    options = {"eps": 0.1, "attacks": ("pgd:steps=5", "fgsm", "noise")}
    expected = audit(guarded, data, **{**SHORT, **options})
    assert expected.examples.fell.sum() == 4
    assert same(merge_audits(run_shards(guarded, data, tmp_path, 3, **options)), expected)


def test_a_shard_carries_no_verdict(parts):
    for k, part in enumerate(parts):
        report = AuditReport.load(part)
        assert str(report.partial) == f"images {20 * k} to {20 * k + 19} of 60 (one shard)"
        assert not report.conclusive and report.flags == [] and report.data["count"] == 20
        assert set(report.examples.indices) <= set(range(20 * k, 20 * k + 20))


def test_a_random_guard_with_adversarial_images_in_two_uneven_shards(classifier, data, tmp_path):
    noisy = guard(classifier, Noisy(NoConfig()))
    options = {"attacks": ("fgsm",), "eot": 2, "judgements": 3, "keep_adversarial": True}
    merged = merge_audits(run_shards(noisy, data, tmp_path, 2, **options))
    expected = audit(noisy, data, **{**SHORT, **options})
    assert same(merged, expected)
    found = merged.details.adversarial
    assert all(np.array_equal(found[name], images) for name, images in expected.details.adversarial.items())


def test_clean_images_only_in_shards(guarded, data, tmp_path):
    merged = merge_audits(run_shards(guarded, data, tmp_path, 3, attacks=()))
    assert same(merged, audit(guarded, data, **{**SHORT, "attacks": ()}))


def test_an_attack_that_fails_in_one_shard_has_failed(classifier, data, tmp_path):
    guarded, attack = guard(classifier, "blur"), FailsLate(float(data.batch([25])[0].mean()))
    merged = merge_audits(run_shards(guarded, data, tmp_path, 3, attacks=(attack,)))
    assert not merged.complete and {row.error for row in merged.rows[2:]} != {None}
    assert same(merged, audit(guarded, data, **{**SHORT, "attacks": (attack,)}))


def test_a_merged_report_is_saved_without_the_journals(parts, tmp_path):
    merged = merge_audits(parts)
    assert merged.save(tmp_path / "whole").parent == tmp_path / "whole"
    assert same(AuditReport.load(tmp_path / "whole"), merged)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "examples.npz",
        "report.json",
        "results.npz",
    ]


def test_shards_that_are_missing_or_given_twice_are_errors(parts, tmp_path):
    for given, said in (
        (parts[:2], "images 40 to 59 are missing"),
        (parts[1:], "images 0 to 19 are missing"),
        ([*parts, parts[1]], "images 20 to 39 are in two shards"),
    ):
        with pytest.raises(FileError, match=said):
            merge_audits(given)
    with pytest.raises(FileError, match="has no journal of a shard"):
        merge_audits([tmp_path])


def test_a_shard_of_another_audit_is_an_error(guarded, data, parts, tmp_path):
    audit(guarded, data, **SHORT, seed=1, out=tmp_path, shard=(2, 3))
    with pytest.raises(FileError, match="a shard of another audit than .*: facts.seed was 0, is 1; merge"):
        merge_audits([parts[0], tmp_path, parts[2]])


def test_a_shard_that_was_cut_off_is_an_error_until_it_has_gone_on(guarded, data, parts, tmp_path):
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.5, shard=(2, 3))
    given = [parts[0], tmp_path, parts[2]]
    with pytest.raises(FileError, match="this shard is not at its end; run its command again"):
        merge_audits(given)
    audit(guarded, data, **SHORT, out=tmp_path, shard=(2, 3))
    assert same(merge_audits(given), merge_audits(parts))


def test_a_damaged_shard_is_an_error(parts, tmp_path):
    shutil.copytree(parts[1], tmp_path / "copy")
    path = tmp_path / "copy" / "audit-2-of-3.journal"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FileError, match="is damaged at byte"):
        merge_audits([parts[0], tmp_path / "copy", parts[2]])


def test_shards_are_whole_batches_and_leave_no_image_out():
    for total, size, count in ((60, 20, 3), (1000, 250, 3), (1001, 7, 8), (5, 1, 5), (10, 20, 1)):
        spans = [span_of((k, count), total, size) for k in range(1, count + 1)]
        assert [index for span in spans for index in span] == list(range(total))
        assert all(span.start % size == 0 for span in spans)


@pytest.mark.parametrize(
    ("shard", "out", "said"),
    [
        ((4, 3), "x", "shard: expected K/N with K from 1 to N, such as 2/8, got 4/3"),
        ((0, 3), "x", "got 0/3"),
        ((1, 4), "x", r"60 images are 3 batches of 20, fewer than 4 shards; choose a batch_size of at most 15"),
        ((1, 3), None, "out: expected a folder"),
    ],
)
def test_shards_that_cannot_be_are_errors(guarded, data, tmp_path, shard, out, said):
    with pytest.raises(ConfigError, match=said):
        audit(guarded, data, **SHORT, shard=shard, out=out and tmp_path / out)
    assert not (tmp_path / "x").exists()


def test_journals_of_other_shards_are_errors_or_given_up(guarded, data, parts, tmp_path):
    shutil.copytree(parts[0], tmp_path / "part")
    for shard in ((1, 2), None):
        with pytest.raises(OutputError, match=r"audit-1-of-3.journal is the journal of an audit in other shards"):
            audit(guarded, data, **SHORT, out=tmp_path / "part", shard=shard)
    audit(guarded, data, **{**SHORT, "attacks": ()}, out=tmp_path / "part", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["report.json", "results.npz"]


def test_facts_of_another_report_in_the_folder_are_not_taken_over(guarded, data, parts, tmp_path):
    copies = [shutil.copytree(part, tmp_path / part.name) for part in parts]
    (copies[0] / "report.json").write_text("{")
    other = AuditReport.load(parts[1])
    dataclasses.replace(other, classifier={**other.classifier, "sha256": "0" * 64, "spec": "other"}).save(copies[1])
    whole = dataclasses.replace(AuditReport.load(parts[2]), partial=None)
    dataclasses.replace(whole, classifier={**whole.classifier, "spec": "whole"}).save(copies[2])
    assert merge_audits(copies).classifier == AuditReport.load(parts[0]).classifier


def test_nothing_to_merge_and_shards_of_another_version_are_errors(parts, monkeypatch):
    with pytest.raises(ConfigError, match="expected the folders of an audit's shards, got none"):
        merge_audits([])
    monkeypatch.setattr("purifier.auditing.shards.version_of", lambda name: "99.0")
    with pytest.raises(FileError, match=r"expected a shard of purifier 99.0, got \d"):
        merge_audits(parts)
