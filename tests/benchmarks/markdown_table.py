"""Markdown tables, and how a cell shows an accuracy with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from purifier.auditing.statistics import Rate

MISSING = "-"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float, interval: Sequence[float] | None = None) -> str:
    """``71.3% [70.4, 72.2]``: a share in [0, 1] with its interval, where there is one."""
    shown = f"{share:.1%}"
    return shown if interval is None else f"{shown} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def rate_cell(found: Rate | None) -> str:
    return MISSING if found is None else percent(found.share, found.interval)
