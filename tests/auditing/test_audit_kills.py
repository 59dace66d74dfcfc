"""Audits in real processes, killed by SIGKILL, shared out by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from journal_helpers import lasting

from purifier.auditing.report import AuditReport

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "audit_kills.py"
AUDIT = ("--classifier", "demo", "--purifier", "demo-plain", "--data", "demo:40", "--attack", "pgd:steps=2")
AUDIT += ("--probes", "1", "--batch-size", "10", "--eps", "0.05")


@pytest.mark.integration
def test_an_audit_that_is_killed_at_random_moments_ends_with_the_same_report():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "12", "--images", "60"], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the report is the same" in done.stdout


@pytest.mark.integration
def test_two_processes_of_torchrun_give_the_report_of_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ways = {"one": (), "two": ("-m", "torch.distributed.run", "--nproc-per-node", "2")}
    for name, way in ways.items():
        done = subprocess.run(
            [sys.executable, *way, "-m", "purifier", "audit", *AUDIT, "--out", tmp_path / name],
            capture_output=True,
            text=True,
            timeout=500,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("worst case per image") == 1
    one, two = (AuditReport.load(tmp_path / name) for name in ways)
    assert lasting(one) == lasting(two)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["examples.npz", "report.json", "results.npz"]
