"""What the tests of reports share: a hostile name, and real audits, small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import purifier

HOSTILE = "<script>alert(1)</script>\"'&|\n](javascript:x)"
"""A name that must not become part of a page."""


def audited(name: str, folder: Path, **options) -> purifier.AuditReport:
    settings = {"eps": [0.05, 0.1], "attacks": ["pgd:steps=3", "square:queries=20"], "probes": 6, **options}
    found = purifier.audit(purifier.guard("demo", name), "demo:20", out=folder, **settings)
    commanded = dataclasses.replace(found, command=["purifier", "audit", "--data", "demo:20"])
    commanded.save(folder)
    return commanded
