"""An audit that was cut off goes on where it stopped, ends with the same report, and never mixes two audits."""

from __future__ import annotations

import random
import re
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from journal_helpers import SHORT, Counting, FailsLate, cut_off, lasting, same

from audit_helpers import NoConfig, Noisy
from purifier.auditing.audit import audit
from purifier.auditing.journal import Journal
from purifier.auditing.report import AuditReport
from purifier.errors import DataError, FileError, OutputError
from purifier.guards.guard import guard
from purifier.interrupts import Terminated


@pytest.fixture(scope="module")
def guarded(classifier):
    return guard(classifier, "blur")


@pytest.fixture(scope="module")
def whole(guarded, data) -> AuditReport:
    return audit(guarded, data, **SHORT)


@pytest.fixture(scope="module")
def journal(guarded, data, tmp_path_factory) -> bytes:
    """The journal of the short audit at its end."""
    out = tmp_path_factory.mktemp("journal")
    cut_off(guarded, data, out, KeyboardInterrupt(), 1.0)
    return (out / "audit.journal").read_bytes()


def put(content: bytes, folder: Path) -> Path:
    (folder / "audit.journal").write_bytes(content)
    return folder


def test_cut_at_any_byte_it_ends_with_the_same_report(guarded, data, whole, journal, tmp_path):
    chosen = random.Random(0)
    for at in [0, 1, len(journal) - 1, len(journal), *(chosen.randrange(len(journal)) for _ in range(5))]:
        out = put(journal[:at], tmp_path)
        assert same(audit(guarded, data, **SHORT, out=out), whole), at
        assert not (out / "audit.journal").exists()
        assert same(AuditReport.load(out), whole)


def test_a_random_guard_ends_with_the_same_report_too(classifier, data, tmp_path):
    noisy, options = guard(classifier, Noisy(NoConfig())), {"attacks": ("fgsm",), "eot": 2, "judgements": 3}
    cut_off(noisy, data, tmp_path, KeyboardInterrupt(), 0.5, **options)
    found = audit(noisy, data, **{**SHORT, **options}, out=tmp_path)
    assert same(found, audit(noisy, data, **{**SHORT, **options}))


@pytest.mark.parametrize("kept", [False, True])
def test_adversarial_images_are_kept_across_a_cut(guarded, data, tmp_path, kept):
    options = {**SHORT, "keep_adversarial": kept}
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.5, keep_adversarial=kept)
    found = audit(guarded, data, **options, out=tmp_path).details.adversarial
    expected = audit(guarded, data, **options).details.adversarial
    if not kept:
        assert found is None and expected is None
        return
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_nothing_that_was_found_is_looked_for_again(classifier, data, tmp_path):
    guarded, options = guard(classifier, "blur"), {"attacks": (Counting(),), "routes": ("exact",)}
    Counting.asked.clear()
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.5, **options)
    before = len(Counting.asked)
    assert 0 < before < 6  # two jobs on three batches
    audit(guarded, data, **{**SHORT, **options}, out=tmp_path)
    assert len(Counting.asked) == 6


def test_an_attack_that_failed_is_not_tried_again(classifier, data, tmp_path):
    pixels, _ = data.batch([25])  # in the second batch
    options = {"attacks": (FailsLate(float(pixels.mean())), "fgsm")}
    guarded = guard(classifier, "blur")
    expected = audit(guarded, data, **{**SHORT, **options})
    assert not expected.complete
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.75, **options)
    assert same(audit(guarded, data, **{**SHORT, **options}, out=tmp_path), expected)


@pytest.mark.parametrize(
    ("error", "why"),
    [(KeyboardInterrupt(), "stopped by Ctrl-C"), (Terminated(signal.SIGTERM), "stopped by SIGTERM")],
)
def test_an_interrupt_leaves_a_partial_report_of_whole_batches(guarded, data, whole, tmp_path, error, why):
    cut_off(guarded, data, tmp_path, error, 0.5)
    part = AuditReport.load(tmp_path)
    assert str(part.partial) == f"images 0 to 19 of 60 ({why})"
    assert not part.conclusive and "partial" in repr(part) and part.flags == []
    assert [row.result.count for row in part.rows] == [20] * len(whole.rows)
    assert np.array_equal(part.results.counted, whole.results.counted[:, :20])
    assert part.data["sha256"] == whole.data["sha256"] and sum(part.data["classes"].values()) == 20
    assert same(audit(guarded, data, **SHORT, out=tmp_path), whole)


def test_an_interrupt_in_the_first_batch_leaves_only_the_journal(guarded, data, tmp_path):
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["audit.journal"]


def test_an_interrupt_keeps_the_report_of_all_images_that_is_there(guarded, data, whole, tmp_path):
    whole.save(tmp_path)
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.5)
    assert AuditReport.load(tmp_path) == whole


@contextmanager
def full_disk(size: int):
    """Files cannot grow beyond ``size`` bytes, as on a disk that is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("share", [0.35, 0.7, 0.999])
def test_on_a_full_disk_what_was_found_is_kept(guarded, data, whole, journal, tmp_path, share):
    size = int(share * len(journal))
    with full_disk(size), pytest.raises(OutputError, match="cannot write .*audit.journal: File too large"):
        audit(guarded, data, **SHORT, out=tmp_path)
    if share > 0.5:  # a whole batch
        assert "images 0 to" in str(AuditReport.load(tmp_path).partial)
    assert (tmp_path / "audit.journal").stat().st_size <= size
    assert same(audit(guarded, data, **SHORT, out=tmp_path), whole)


def test_overwrite_gives_up_another_audit_and_goes_on_with_the_same(classifier, data, tmp_path):
    guarded, options = guard(classifier, "blur"), {"attacks": (Counting(),), "routes": ("exact",)}
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.5, **options, seed=1)
    Counting.asked.clear()
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.5, **options, overwrite=True)
    done = len(Counting.asked)
    report = audit(guarded, data, **{**SHORT, **options}, out=tmp_path, overwrite=True)
    assert report.seed == 0 and 0 < done < len(Counting.asked) == 6


@pytest.mark.parametrize("at", [3, 40, 5_000])
def test_a_damaged_record_is_an_error_that_loses_nothing(guarded, data, whole, journal, tmp_path, at):
    damaged = bytearray(journal)
    damaged[at] ^= 1
    put(bytes(damaged), tmp_path)
    with pytest.raises(FileError, match=r"audit.journal is damaged at byte \d+") as caught:
        audit(guarded, data, **SHORT, out=tmp_path)
    begin = int(str(caught.value).partition("byte ")[2].partition(":")[0])
    assert begin <= at and (tmp_path / "audit.journal").read_bytes() == bytes(damaged)
    put(journal[:begin], tmp_path)  # as the error advises
    assert same(audit(guarded, data, **SHORT, out=tmp_path), whole)
    put(bytes(damaged), tmp_path)
    assert same(audit(guarded, data, **SHORT, out=tmp_path, overwrite=True), whole)


@pytest.mark.parametrize("record", [0, 3])
def test_a_damaged_length_is_no_end(guarded, data, journal, tmp_path, record):
    begin = [match.start() for match in re.finditer(rb"^\d+ [0-9a-f]{8} [0-9a-f]{8}$", journal, re.MULTILINE)][record]
    damaged = journal[:begin] + b"9" + journal[begin + 1 :]
    assert damaged != journal
    put(damaged, tmp_path)
    with pytest.raises(FileError, match=f"is damaged at byte {begin}:"):
        audit(guarded, data, **SHORT, out=tmp_path)
    assert (tmp_path / "audit.journal").read_bytes() == damaged


def test_a_journal_of_another_format_is_an_error(guarded, data, tmp_path, monkeypatch):
    monkeypatch.setattr("purifier.auditing.journal.FORMAT", 0)
    cut_off(guarded, data, tmp_path, KeyboardInterrupt(), 0.1)
    monkeypatch.undo()
    with pytest.raises(FileError, match="expected a journal of format 1, got 0"):
        audit(guarded, data, **SHORT, out=tmp_path)
    assert audit(guarded, data, **{**SHORT, "attacks": ("fgsm",)}, out=tmp_path, overwrite=True).complete


def test_a_file_that_is_no_journal_is_an_error(guarded, data, tmp_path):
    put(b"12 monkeys\n" * 30, tmp_path)
    with pytest.raises(FileError, match="is damaged at byte 0"):
        audit(guarded, data, **SHORT, out=tmp_path)


def test_two_runs_cannot_write_one_journal(guarded, data, tmp_path):
    failed = []

    def second(done: float, total: int, what: str) -> None:
        if not failed:
            with pytest.raises(OutputError, match="another run is writing it") as caught:
                audit(guarded, data, **SHORT, out=tmp_path)
            failed.append(caught.value)

    audit(guarded, data, **SHORT, out=tmp_path, progress=second)
    assert failed


def test_the_batch_size_that_was_chosen_stays(guarded, data, journal, tmp_path):
    put(journal, tmp_path)
    report = audit(guarded, data, **{**SHORT, "batch_size": None}, out=tmp_path)
    assert report.batch_size == 20


def test_data_that_change_between_two_readings_are_an_error(guarded):
    class Restless(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.rand(1, 28, 28) if index == 5 else torch.zeros(1, 28, 28), index % 10

    with pytest.raises(DataError, match="images 0 to 7 are not those that were read before"):
        audit(guarded, Restless(), **{**SHORT, "batch_size": 8})


def test_without_a_folder_nothing_is_written(guarded, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = audit(guarded, data, **{**SHORT, "attacks": ("fgsm",)})
    assert lasting(report)["partial"] is None and not list(tmp_path.iterdir())
    assert Journal().read("audit") is None
