"""Audits that are planned, shared out or ended early, from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purifier.auditing.report import AuditReport

AUDIT = ["audit", "--classifier", "demo", "--purifier", "demo-plain", "--data", "demo:30", "--batch-size", "10"]
AUDIT += ["--attack", "pgd:steps=2", "--probes", "1", "--eps", "0.05"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path: str) -> list[dict]:
    found = json.loads(Path(path, "report.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_a_dry_run_says_what_would_run_and_writes_nothing(command, folder):
    code, shown, _ = command(*AUDIT, "--attack", "square:queries=50", "--out", "found", "--dry-run")
    assert code == 0
    words = " ".join(shown.split())
    assert "30 images in batches of 10" in words and "Nothing was attacked" in words
    lines = [line.split() for line in shown.splitlines() if "linf 0.05" in line]
    assert [line[:2] for line in lines] == [
        ["pgd:steps=2", "exact"],
        ["pgd:steps=2", "bpda"],
        ["pgd:steps=2", "oblivious"],
        ["square:queries=50", "oblivious"],
        ["square:queries=50", "none"],
    ]
    assert [line[4:6] for line in lines] == [["2", "-"]] * 3 + [["-", "50"]] * 2
    assert list(folder.iterdir()) == []


def test_a_dry_run_names_what_a_preset_leaves_out_and_needs_no_attack(command, folder):
    code, shown, _ = command(*AUDIT[:-6], "--attack", "none", "--out", "found", "--dry-run")
    assert code == 0 and "clean images only: 30 images" in shown


def test_a_dry_run_has_no_json(command, folder):
    code, shown, complaint = command(*AUDIT, "--out", "found", "--dry-run", "--json")
    assert code == 2 and shown == "" and "--dry-run prints a table and no report; leave out --json" in complaint


def test_shards_are_merged_into_the_report_of_one_run(command, folder):
    assert command(*AUDIT, "--out", "whole")[0] == 0
    for k in (1, 2):
        code, shown, _ = command(*AUDIT, "--shard", f"{k}/2", "--out", f"part{k}")
        words = " ".join(shown.split())
        assert code == 0
        assert "(one shard); it has no verdict, and flags were not looked for" in words
    code, shown, _ = command("report", "merge", "part2", "part1", "--out", "merged", "--fail-under", "clean=0.3")
    assert code == 0, shown
    assert "gate passed, clean images" in shown and "report merged/report.json" in shown
    assert rows("merged") == rows("whole")
    merged, whole = AuditReport.load("merged"), AuditReport.load("whole")
    assert merged.partial is None and merged.classifier == whole.classifier and merged.flags == whole.flags
    assert merged.command is not None and "--shard" not in merged.command
    code, _, complaint = command("report", "merge", "part2", "part1", "--out", "merged")
    assert code == 2 and "merged/report.json exists; replace it by --overwrite" in complaint
    assert command("report", "merge", "part2", "part1", "--out", "merged", "--overwrite", "--fail-under", "1")[0] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shard", "3/2"], "--shard: expected K/N with K from 1 to N, such as 2/8, got '3/2'"),
        (["--shard", "two"], "--shard: expected K/N"),
        (
            ["--shard", "1/2", "--fail-under", "0.5"],
            "one shard has no verdict; give the gates to `purifier report merge`",
        ),
        (["--shard", "1/4"], "30 images are 3 batches of 10, fewer than 4 shards"),
    ],
)
def test_shards_that_cannot_be_are_errors(command, folder, options, said):
    code, _, complaint = command(*AUDIT, *options, "--out", "found")
    assert code == 2 and said in complaint
    assert list(folder.iterdir()) == []


def test_folders_without_shards_cannot_be_merged(command, folder):
    (folder / "empty").mkdir()
    code, _, complaint = command("report", "merge", "empty", "--out", "merged")
    assert code == 2 and "empty has no journal of a shard" in complaint
    assert not (folder / "merged").exists()


def test_what_another_audit_found_is_neither_mixed_in_nor_lost(command, folder):
    assert command(*AUDIT, "--shard", "1/2", "--out", "found")[0] == 0
    shard = folder / "found" / "audit-1-of-2.journal"
    code, _, complaint = command(*AUDIT, "--out", "found")
    assert code == 2 and "already has the report of" in complaint and shard.exists()
    (folder / "found" / "report.json").unlink()
    code, _, complaint = command(*AUDIT, "--out", "found")
    assert code == 2 and "is the journal of an audit in other shards" in complaint and shard.exists()
    shard.rename(folder / "found" / "audit.journal")
    code, _, complaint = command(*AUDIT, "--out", "found")
    assert code == 2 and "is the journal of another audit that was cut off: span.1 was 10, is 30" in complaint
    assert "stopped" not in complaint
    assert command(*AUDIT, "--out", "found", "--overwrite")[0] == 0


def test_a_rank_without_other_processes_is_the_only_process(command, folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    code, shown, _ = command(*AUDIT, "--out", "found", "--fail-under", "0.99")
    assert code == 1 and "gate failed" in shown
    assert (folder / "found" / "report.json").exists()


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_what_was_found_and_the_same_command_goes_on(folder, number):
    line = [sys.executable, "-m", "purifier", *AUDIT, "--out", "found"]
    assert subprocess.run([*line[:-1], "whole"], capture_output=True, timeout=300).returncode == 0
    audit = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = folder / "found" / "audit.journal"
    while audit.poll() is None and not (journal.exists() and b'"clean 10"' in journal.read_bytes()):
        time.sleep(0.01)
    audit.send_signal(number)
    _, said = audit.communicate(timeout=60)
    assert audit.returncode == 128 + number
    how = "Ctrl-C" if number == signal.SIGINT else number.name
    assert f"stopped by {how}; found has what was found, and a partial report; the same command goes on" in said
    part = AuditReport.load("found")
    assert part.partial is not None and part.partial.begin == 0 and part.partial.end in (10, 20, 30)
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert rows("found") == rows("whole") and not journal.exists()
