"""Plugin names -> classes, through entry points. Listing imports no plugin, loading imports one."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import PluginClashError, PluginError
from ..foreign_code import explained

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """Where a plugin comes from, known without importing it."""

    name: str
    value: str
    distribution: str
    version: str


class Registry(Generic[T]):
    """The plugins of one entry-point group.

    Parameters
    ----------
    group
        Entry-point group, such as ``purifier.attacks``.
    base
        The abstract base class of the group's plugins.
    """

    def __init__(self, group: str, base: type[T]) -> None:
        self.group = group
        self.base = base
        self._registered: dict[str, type[T]] = {}

    def register(self, name: str, cls: type[T]) -> None:
        """Add a class for this process only (notebooks, tests); a name in use raises ``PluginClashError``."""
        taken = next((entry for entry in self.entries() if entry.name == name), None)
        if taken is not None:
            raise PluginClashError(
                f"{self.group}: {name!r} is already provided by {taken.distribution}; choose another name",
                name,
                (taken.distribution, "register()"),
            )
        self._registered[name] = self._checked(name, cls)

    def unregister(self, name: str) -> None:
        """Remove a class added by ``register``."""
        if self._registered.pop(name, None) is None:
            raise PluginError(f"{self.group}: {name!r} was not added by register()", name)

    def entries(self) -> list[Entry]:
        """All plugins, sorted by name; a name registered twice appears twice."""
        registered = [Entry(name, _path(cls), "register()", "") for name, cls in self._registered.items()]
        return sorted([*installed(self.group), *registered], key=_order)

    def names(self) -> list[str]:
        """The names of all plugins, sorted, without duplicates."""
        return sorted({entry.name for entry in self.entries()})

    def get(self, name: str) -> type[T]:
        """Import and return one plugin class.

        Raises
        ------
        PluginClashError
            Two distributions use the name.
        PluginError
            There is no such plugin, its import fails, or it is not a subclass of ``base``.
        """
        if name in self._registered:
            return self._registered[name]
        points = {_entry(point): point for point in entry_points(group=self.group, name=name)}
        if not points:
            raise PluginError(self._missing(name), name)
        if len(points) > 1:
            owners = tuple(sorted(entry.distribution for entry in points))
            raise PluginClashError(
                f"{self.group}: {name!r} is provided by {' and by '.join(owners)}; uninstall one of them",
                name,
                owners,
            )
        ((entry, point),) = points.items()
        who = f"{self.group}: plugin {name!r} of {entry.distribution} {entry.version} ({entry.value})"
        with explained(f"{who} failed to import", partial(PluginError, name=name), passing=lambda _: False):
            loaded = point.load()
        return self._checked(name, loaded)

    def name_of(self, cls: type[T]) -> str:
        """The name under which a class is registered, from its own module or from one that re-exports it."""
        entries = self.entries()
        for entry in entries:
            if entry.value == _path(cls):
                return entry.name
        for entry in entries:
            if _imported(entry.value) is cls:
                return entry.name
        raise PluginError(
            f"{self.group}: {_path(cls)} is not registered; add an entry point in {self.group!r} or call register()",
            cls.__name__,
        )

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _missing(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return f"{self.group}: no plugin {name!r}{hint} Installed: {', '.join(self.names()) or 'none'}"

    def _checked(self, name: str, loaded: object) -> type[T]:
        if isinstance(loaded, type) and issubclass(loaded, self.base):
            return loaded
        raise PluginError(
            f"{self.group}: plugin {name!r} must be a subclass of {self.base.__name__}, got {loaded!r}", name
        )


def installed(group: str) -> list[Entry]:
    """The plugins of a group in installed distributions, sorted by name; imports none of them."""
    return list(_installed(group, _state_of_path()))


@functools.lru_cache(maxsize=8)
def _installed(group: str, state: object) -> list[Entry]:
    return sorted({_entry(point) for point in entry_points(group=group)}, key=_order)


def _state_of_path() -> tuple[tuple[str, int], ...]:
    """Where Python looks for distributions, and when something was last added or removed there."""
    found = []
    for place in sys.path:
        with suppress(OSError):
            found.append((place, Path(place).stat().st_mtime_ns))
    return tuple(found)


def _order(entry: Entry) -> tuple[str, str]:
    return entry.name, entry.distribution


def _entry(point: EntryPoint) -> Entry:
    owner = point.dist
    return Entry(point.name, point.value, owner.name if owner else "unknown", owner.version if owner else "")


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _imported(value: str) -> object:
    """The object that an entry point's value refers to, if its module is already imported; imports nothing."""
    module, _, attribute = value.partition("[")[0].strip().partition(":")
    found: object = sys.modules.get(module)
    for part in attribute.split("."):
        # Not getattr: a module's __getattr__ could import another plugin.
        found = getattr(found, "__dict__", {}).get(part)
    return found
