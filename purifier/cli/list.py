"""``purifier list``: the installed plugins, without importing them, or the options of one plugin."""

from __future__ import annotations

from textwrap import fill
from typing import Annotated

import typer
from rich.console import Console

from ..contracts.registry import installed
from ..errors import PluginError
from .console import plain_console

KINDS = ("purifier", "attack", "exporter")


def list_plugins(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the options of this plugin.")] = None,
) -> None:
    """List the installed purifiers, attacks and exporters, or the options of one of them."""
    console = plain_console(soft_wrap=True)  # one line per plugin, for grep
    if name is not None:
        _show_options(name, console)
        return
    owned: dict[str, list[tuple[str, str, str]]] = {}
    for kind in KINDS:
        entries = installed(f"purifier.{kind}s")
        names = [entry.name for entry in entries]
        for entry in entries:
            clash = "  clash: two distributions, neither loads" if names.count(entry.name) > 1 else ""
            owner = f"{entry.distribution} {entry.version}".strip()
            owned.setdefault(owner, []).append((kind, entry.name, entry.value + clash))
    width = max((len(name) for rows in owned.values() for _, name, _ in rows), default=0)
    for owner, rows in owned.items():
        console.print(owner, markup=False)
        for kind, entry_name, value in rows:
            console.print(f"  {kind:<8}  {entry_name:<{width}}  {value}", markup=False)


def _show_options(name: str, console: Console) -> None:
    from .. import attacks, exporters, purifiers
    from ..option_help import keywords_of, options_of, summary_of

    known = {kind: {entry.name for entry in installed(f"purifier.{kind}s")} for kind in KINDS}
    kinds = [kind for kind in KINDS if name in known[kind]]
    if not kinds:
        raise PluginError(f"no plugin {name!r}; `purifier list` shows the installed ones", name)
    for kind in kinds:
        plugin: type
        if kind == "purifier":
            plugin = purifiers.get(name)
            options = options_of(purifiers.get(name).Config)
        elif kind == "attack":
            plugin = attacks.get(name)
            options = options_of(plugin)
        else:
            plugin = exporters.get(name)
            options = keywords_of(exporters.get(name).export)
        console.print(f"{kind} {name}: {summary_of(plugin)}", markup=False)
        for option in options:
            default = "required" if option.default is None else f"default {option.default}"
            console.print(f"\n  {option.name}  ({option.type}; {default})", markup=False)
            if option.help:
                indent = " " * 6
                text = fill(option.help, 100, initial_indent=indent, subsequent_indent=indent)
                console.print(text, markup=False)
        if not options:
            console.print("  no options")
