"""A part of an audit: some of its images, from which nothing can be concluded about all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Partial:
    """Which images a partial report is about: those at positions ``begin`` to ``end`` - 1 of ``total``."""

    begin: int
    end: int
    total: int
    why: str
    """Why it is not about all: a shard, or how the audit was stopped."""

    def __str__(self) -> str:
        return f"images {self.begin:,} to {self.end - 1:,} of {self.total:,} ({self.why})"
