"""Where commands print."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A rich console that prints what it is given: rich would show ``:train:`` in a DATA spec as a picture."""
    return Console(highlight=False, emoji=False, **options)
