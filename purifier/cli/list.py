"""``purifier list``: the installed plugins, none of them imported."""

from __future__ import annotations

from ..attacking.attack import attacks
from ..contracts.purifier import purifiers
from ..guards.exporter import exporters
from .console import plain_console


def list_plugins() -> None:
    """List the installed purifiers, attacks and exporters, under the distribution that each comes from."""
    owned: dict[str, list[tuple[str, str, str]]] = {}
    for kind, registry in (("purifier", purifiers), ("attack", attacks), ("exporter", exporters)):
        entries = registry.entries()
        names = [entry.name for entry in entries]
        for entry in entries:
            clash = "  clash: two distributions, neither loads" if names.count(entry.name) > 1 else ""
            owner = f"{entry.distribution} {entry.version}".strip()
            owned.setdefault(owner, []).append((kind, entry.name, entry.value + clash))
    width = max((len(name) for rows in owned.values() for _, name, _ in rows), default=0)
    console = plain_console(soft_wrap=True)  # a line a plugin, for grep too
    for owner, rows in owned.items():
        console.print(owner, markup=False)
        for kind, name, value in rows:
            console.print(f"  {kind:<8}  {name:<{width}}  {value}", markup=False)
