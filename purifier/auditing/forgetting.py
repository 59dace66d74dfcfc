"""Undo what somebody else's code keeps outside its modules: in class attributes and global variables."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn

from ..foreign_code import is_foreign

DEPTH = 4
"""How deep containers and objects are followed."""
MANY = 10_000
"""The entries of a longer container are not followed."""
LARGEST_TENSOR = 2**26
"""In bytes: a larger one is a data set rather than a memory, and copying it would take long."""


@contextmanager
def forgetting(*modules: nn.Module) -> Iterator[None]:
    """Put back class attributes and globals of the code of these modules after the block.

    Containers, functions' defaults and closures, and objects of the same packages are followed. What a file or an
    extension keeps is not seen.
    """
    parts = {type(part) for module in modules for part in module.modules()}
    classes = {cls for part in parts for cls in part.__mro__ if is_foreign(cls.__module__)}
    files = {cls.__module__: sys.modules[cls.__module__] for cls in classes if cls.__module__ in sys.modules}
    before = _Snapshot({name.partition(".")[0] for name in files})
    for space in (*classes, *files.values()):
        before.add_names(space)
    try:
        yield
    finally:
        before.restore()


class _Snapshot:
    """What variables of some packages hold."""

    def __init__(self, packages: set[str]) -> None:
        self._packages = packages
        self._seen: set[int] = set()
        self._undo: list[Callable[[], None]] = []

    def restore(self) -> None:
        for undo in self._undo:
            undo()

    def add_names(self, space: Any) -> None:
        """Add the attributes of a class or module."""

        def names() -> dict[str, Any]:
            return {name: value for name, value in vars(space).items() if not name.startswith("__")}

        held = names()

        def undo() -> None:
            now = names()
            for name in now.keys() - held.keys():
                delattr(space, name)
            for name, value in held.items():
                if now.get(name) is not value:
                    setattr(space, name, value)

        self._undo.append(undo)
        for value in held.values():
            self._add(value, DEPTH)

    def _add(self, value: Any, depth: int) -> None:
        """Add what a container, a tensor, a function or an object of these packages holds."""
        if depth == 0 or id(value) in self._seen or isinstance(value, type | nn.Module):
            return
        self._seen.add(id(value))
        inner: list[Any] = []
        if isinstance(value, Tensor):
            self._add_tensor(value)
        elif type(value) in (list, deque):
            inner = self._add_sequence(value)
        elif type(value) is set:
            self._add_set(value)
        elif type(value) is dict:
            inner = self._add_dict(value)
        elif isinstance(value, FunctionType) and self._owns(value.__module__):
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
            inner = [*cells, *(value.__defaults__ or ())]
        elif self._owns(type(value).__module__) and type(getattr(value, "__dict__", None)) is dict:
            inner = self._add_dict(vars(value))
        for one in inner if len(inner) <= MANY else ():
            self._add(one, depth - 1)

    def _owns(self, module: object) -> bool:
        return str(module).partition(".")[0] in self._packages

    def _add_tensor(self, value: Tensor) -> None:
        if value.requires_grad or value.nbytes > LARGEST_TENSOR:
            return
        held, version = value.clone(), value._version

        def undo() -> None:
            if value._version != version:
                value.resize_(held.shape).copy_(held)

        self._undo.append(undo)

    def _add_dict(self, value: dict[Any, Any]) -> list[Any]:
        held = dict(value)

        def undo() -> None:
            if list(value) != list(held) or any(value[name] is not one for name, one in held.items()):
                value.clear()
                value.update(held)

        self._undo.append(undo)
        return list(held.values())

    def _add_sequence(self, value: list[Any] | deque[Any]) -> list[Any]:
        held = list(value)

        def undo() -> None:
            if list(map(id, value)) != list(map(id, held)):
                value.clear()
                value.extend(held)

        self._undo.append(undo)
        return held

    def _add_set(self, value: set[Any]) -> None:
        held = set(value)

        def undo() -> None:
            if value != held:
                value.clear()
                value.update(held)

        self._undo.append(undo)
