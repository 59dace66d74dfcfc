"""Shared by the tests of reports: real audits, small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import purifier
from purifier.auditing.report import Flag
from report_helpers import audited


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
