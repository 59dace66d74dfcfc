"""Shared by the tests of reports: real audits, small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import purifier
from purifier.auditing.report import Flag

HOSTILE = "<script>alert(1)</script>\"'&|\n](javascript:x)"
"""A name that must not become part of a page."""


def audited(name: str, folder: Path, **options) -> purifier.AuditReport:
    settings = {"eps": [0.05, 0.1], "attacks": ["pgd:steps=3", "square:queries=20"], "probes": 6, **options}
    found = purifier.audit(purifier.guard("demo", name), "demo:20", out=folder, **settings)
    commanded = dataclasses.replace(found, command=["purifier", "audit", "--data", "demo:20"])
    commanded.save(folder)
    return commanded


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> purifier.AuditReport:
    """A guard that withstands weak attacks, without flags."""
    return audited("demo", tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="session")
def failing(tmp_path_factory: pytest.TempPathFactory) -> purifier.AuditReport:
    """A weak guard, a flag and an attack that failed."""
    found = audited("demo-plain", tmp_path_factory.mktemp("failing"), attacks=["pgd:steps=3"])
    rows = [*found.rows[:-1], dataclasses.replace(found.rows[-1], result=None, detection=None, error="it broke")]
    flags = [Flag("unbounded", "PGD leaves 3 of 6 images right")]
    return dataclasses.replace(found, rows=rows, flags=flags)


@pytest.fixture(scope="session")
def old_reports() -> list[purifier.AuditReport]:
    """A report of every earlier version of the schema."""
    folder = Path(__file__).parents[1] / "auditing" / "old_reports"
    return [purifier.AuditReport.load(path) for path in sorted(folder.glob("v*.json"))]
