"""``purifier list``: the installed plugins, none of them imported."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..interfaces import attacks, exporters, purifiers


def list_plugins() -> None:
    """List the installed purifiers, attacks and exporters."""
    table = Table("kind", "name", "from", "class")
    for kind, registry in (("purifier", purifiers), ("attack", attacks), ("exporter", exporters)):
        entries = registry.entries()
        names = [entry.name for entry in entries]
        for entry in entries:
            clash = " [red](clash: two distributions, neither loads)[/]" if names.count(entry.name) > 1 else ""
            owner = f"{entry.distribution} {entry.version}".strip()
            table.add_row(kind, entry.name + clash, owner, entry.value)
    Console().print(table)
