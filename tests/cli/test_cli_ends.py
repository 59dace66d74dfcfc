"""How ``purifier audit`` ends: closed pipes, reports that cannot be written, gates; real processes where it matters."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

import purifier
from purifier import Attack
from purifier.cli import progress
from purifier.cli.progress import time_left

AUDIT = [
    "audit",
    "--classifier",
    "demo",
    "--purifier",
    "identity",
    "--data",
    "demo:20",
    "--probes",
    "1",
    "--out",
    "found",
    "--overwrite",
]
PGD = ["--attack", "pgd:steps=3"]
BUDGETS = [argument for eps in ("0.02", "0.04", "0.06", "0.08", "0.1") for argument in ("--eps", eps)]
PAGE = os.sysconf("SC_PAGE_SIZE")
LIMITED = """
import os, resource, sys, purifier
from purifier.cli import main
class Filling(purifier.Attack):
    needs, norms = "labels", ("linf",)
    def perturb(self, target, pixels, labels, threat, generator):
        if "FULL" in os.environ:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return pixels
purifier.attacks.register("filling", Filling)
main()
"""


@dataclass(frozen=True)
class Blocking(Attack):
    """Puts a file where the report's folder is to be."""

    needs: ClassVar[str] = "labels"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        shutil.rmtree("found", ignore_errors=True)
        Path("found").write_text("in the way")
        return pixels


def piped(lines: int, *arguments: str, merged: bool = False, **environment: str) -> tuple[int, str, str]:
    """Run a command into a pipe whose reader stops after some lines: (exit code, the lines, standard error).

    The pipe holds one page, so that a command with more to say cannot have said it before the reader is gone.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "purifier", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    ) as process:
        assert process.stdout is not None
        assert fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PAGE) == PAGE
        read = b"".join(process.stdout.readline() for _ in range(lines)).decode()
        process.stdout.close()
        complaint = "" if process.stderr is None else process.stderr.read().decode()
        return process.wait(timeout=300), read, complaint


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.integration
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_an_audit_whose_reader_is_gone_ends_with_141_and_keeps_its_report(lines, folder):
    code, read, complaint = piped(lines, *AUDIT, *PGD, *BUDGETS)
    assert (code, complaint) == (141, "")
    assert len(read.splitlines()) == lines and read[:10] in ("", "classifier")
    assert purifier.AuditReport.load("found").complete


@pytest.mark.integration
def test_a_pipe_that_closes_under_the_progress_bar_ends_with_141(folder):
    code, read, _ = piped(1, *AUDIT, "--attack", "square:queries=5000", merged=True, FORCE_COLOR="1", TERM="xterm")
    assert code == 141
    assert read
    # It ended in the middle, and blamed no attack.
    assert [path.name for path in (folder / "found").iterdir()] == ["audit.journal"]


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [["audit", "--help"], ["--version"], ["audit", "--nonsense"]])
def test_other_output_without_a_reader_ends_with_141(arguments):
    assert piped(0, *arguments, merged=True)[0] == 141


@pytest.mark.integration
def test_the_bar_is_drawn_on_a_terminal_and_disappears(folder):
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "purifier", *AUDIT, "--attack", "pgd:steps=100", "--eps", "0.02"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=environment, text=True)
    os.close(slave)
    drawn = b""
    try:
        while part := os.read(master, 65536):
            drawn += part
    except OSError as error:  # Linux's way to say that the other end is closed
        assert error.errno == errno.EIO
    os.close(master)
    table, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 3)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", drawn.decode())
    assert "pgd:steps=100 exact linf 0.02, 20 of 20 images, right so far:" in " ".join(shown.split())
    shares = [int(share) for share in re.findall(r"^ *(\d+)%\s*$", shown, flags=re.MULTILINE)]
    assert shares == sorted(shares) and shares[0] == 0 and len(set(shares)) > 2
    assert table.startswith("classifier") and "linf 0.02" in table and "right so far" not in table
    assert drawn.rstrip().endswith(b"\x1b[2K")  # cleared


@pytest.mark.parametrize("quiet", [False, True])
def test_where_there_is_no_terminal_a_line_now_and_then_says_how_far_it_is(command, folder, monkeypatch, quiet):
    monkeypatch.setattr("purifier.cli.progress.LINE_SECONDS", 0.0)
    _, _, said = command(*AUDIT, *PGD, *(["--quiet"] if quiet else []))
    if quiet:
        assert said == ""
        return
    lines = said.splitlines()
    assert lines[0].startswith("0%, ") and lines[0].endswith("clean images")
    assert any(
        re.match(r"\d+%, (about .* left, )?pgd:steps=3 exact linf 0.1, \d+ of 20 images, right so", x) for x in lines
    )
    assert lines[-1].startswith("100%")


@pytest.mark.parametrize("out", ["found", "found/deeper"])
def test_a_file_in_the_way_of_the_report_does_not_cost_the_table(out, command, folder):
    purifier.attacks.register("blocking", Blocking)
    try:
        code, shown, complaint = command(*AUDIT[:-2], out, "--attack", "blocking")
    finally:
        purifier.attacks.unregister("blocking")
    assert code == 2
    assert "worst case per image" in shown and "blocking" in shown
    assert re.match(rf"error: cannot write {out}/report.json: .*; choose a writable location\n$", complaint)
    assert [path.name for path in folder.iterdir()] == ["found"] and Path("found").read_text() == "in the way"


@pytest.mark.integration
def test_a_full_disk_costs_nothing_that_was_found(folder):
    # A limit on the size of files fails like a full disk: in the middle of a write.
    command = [sys.executable, "-c", LIMITED, *AUDIT, "--attack", "filling"]
    environment = {**os.environ, "FULL": "yes"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 2, done.stderr
    failure = f"cannot write found/audit.journal: {os.strerror(errno.EFBIG)}; choose a writable location"
    assert done.stderr == (
        f"stopped: {failure}; found has what was found; the same command goes on from there\nerror: {failure}\n"
    )
    assert [path.name for path in Path("found").iterdir()] == ["audit.journal"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3 and "worst case per image" in done.stdout  # the attack does nothing, which is flagged
    assert "report.json" in [path.name for path in Path("found").iterdir()]


def test_the_gate_says_what_it_found_in_words(command, folder):
    code, shown, _ = command(*AUDIT, *PGD, "--eps", "0.001", "--fail-under", "0.1")
    low = purifier.AuditReport.load("found").worst_case[1].result.interval[0]
    begins = f"linf 0.001: the 95% interval of images that are right in the worst case begins at {low:.1%}"
    assert code == 0 and f"gate passed, {begins}, at least the 10.0% of --fail-under" in shown
    code, shown, _ = command(*AUDIT, *PGD, "--eps", "0.001", "--fail-under", "0.99")
    assert code == 1 and f"gate failed, {begins}, less than the 99.0% of --fail-under" in shown


def test_the_gate_of_a_classifier_alone_is_about_that_classifier(command, folder):
    given = [part if part != "identity" else "none" for part in AUDIT]
    code, shown, _ = command(*given, *PGD, "--eps", "0.2", "--fail-under", "0.5")
    assert code == 1 and "gate failed, linf 0.2" in shown and "guarded" not in shown.split("flag ")[0]
    code, _, complaint = command(*given, "--attack", "none", "--fail-under", "0.5")
    assert code == 2 and complaint == "error: --fail-under needs an attack; add one, or leave out --fail-under\n"


@pytest.mark.parametrize(
    ("seconds", "done", "said"),
    [
        (0.5, 5, ""),
        (60, 0, ""),
        (60, 10, ""),
        (60, 5, "about 1:00 left"),
        (65, 2.5, "about 3:15 left"),
        (3600, 1, "about 9:00:00 left"),
    ],
)
def test_the_time_left(seconds, done, said):
    assert time_left(seconds, done, 10) == said


def test_what_a_journal_has_says_nothing_about_the_time_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with progress.audit_progress() as show:
        for now, done in ((0.1, 3), (1.0, 5), (11.0, 6), (31.0, 8)):
            clock[0] = now
            show(done, 10, "square")
    assert capsys.readouterr().err == "80%, about 0:20 left, square\n"


GATED = [*AUDIT, "--eps", "0.001"]


def test_gates_on_clean_images_and_on_attacks(folder, command):
    names = (
        "--fail-under",
        "clean=0.8",
        "--fail-under",
        "pgd=0.1",
        "--fail-under",
        "pgd:steps=3=0.1",
        "--fail-under",
        "0.1",
    )
    code, shown, _ = command(*GATED, *PGD, *names)
    assert code == 3 or code == 0  # --probes 1 may leave it inconclusive, but no gate failed
    assert "gate failed" not in shown
    code, shown, _ = command(*GATED, *PGD, "--fail-under", "clean=0.99", "--fail-under", "robust=0.0")
    assert code == 1
    assert re.search(r"gate failed, clean images: .* begins at 83.9%, less than the 99.0% of --fail-under clean", shown)
    code, shown, _ = command(*GATED, *PGD, "--fail-under", "pgd=0.999")
    assert code == 1 and len(re.findall(r"gate failed, pgd:steps=3 (exact|bpda|oblivious) linf 0.001", shown)) == 3
    code, _, _ = command(*GATED, "--attack", "none", "--fail-under", "clean=0.8")
    assert code in (0, 3)


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("fgsm=0.5", "expected robust, clean or an attack of this audit (pgd, pgd:steps=3), got 'fgsm'"),
        ("clean=", "expected a share of images in [0, 1] such as 0.6, or NAME=SHARE such as clean=0.85, got 'clean='"),
        ("many", "got 'many'"),
        ("clean=85", "--fail-under: expected a share of images in [0, 1], such as 0.5, got 85"),
        ("nan", "expected a share of images in [0, 1]"),
    ],
)
def test_gates_that_cannot_be_are_errors_before_the_audit(gate, says, folder, command):
    code, shown, complaint = command(*GATED, *PGD, "--fail-under", gate)
    assert code == 2 and says in complaint and not shown and not (folder / "found").exists()
