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
LARGEST_TENSOR = 2**26
"""In bytes: a larger one is a data set rather than a memory, and copying it would take long."""

Undo = Callable[[], None]


@contextmanager
def forgetting(*modules: nn.Module) -> Iterator[None]:
    """Put back class attributes and globals of the code of these modules after the block.

    Containers, functions' defaults and closures, and objects of the same authors are followed. What a file or an
    extension keeps is not seen.
    """
    parts = {type(part) for module in modules for part in module.modules()}
    classes = {cls for part in parts for cls in part.__mro__ if is_foreign(cls.__module__)}
    files = {name: sys.modules[name] for name in sorted(cls.__module__ for cls in classes) if name in sys.modules}
    undo = [_names(space) for space in (*classes, *files.values())]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _names(space: Any) -> Undo:
    """Restores the attributes of a class or module, and what its containers hold."""
    held = {name: value for name, value in vars(space).items() if not name.startswith("__")}
    inner = [_inside(value, DEPTH) for value in held.values()]

    def restore() -> None:
        now = {name: value for name, value in vars(space).items() if not name.startswith("__")}
        for name in now.keys() - held.keys():
            delattr(space, name)
        for name, value in held.items():
            if now.get(name) is not value:
                setattr(space, name, value)
        for undo in inner:
            undo()

    return restore


def _inside(value: Any, depth: int) -> Undo:
    """Restores what a container, a tensor or an object of foreign code holds."""
    if isinstance(value, Tensor) and not value.requires_grad:
        return _tensor(value)
    if depth == 0 or isinstance(value, type | nn.Module):
        return _nothing
    if type(value) in (list, deque):
        return _sequence(value, depth)
    if type(value) is set:
        return _set(value)
    if isinstance(value, FunctionType) and is_foreign(value.__module__):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        return _sequence([*cells, *(value.__defaults__ or ())], depth)
    mapping = value if type(value) is dict else None
    if mapping is None and is_foreign(type(value).__module__):
        mapping = getattr(value, "__dict__", None)
    return _dict(mapping, depth) if type(mapping) is dict else _nothing


def _dict(value: dict[Any, Any], depth: int) -> Undo:
    held = dict(value)
    inner = [_inside(one, depth - 1) for one in held.values()]

    def restore() -> None:
        if list(value) != list(held) or any(value[name] is not one for name, one in held.items()):
            value.clear()
            value.update(held)
        for undo in inner:
            undo()

    return restore


def _sequence(value: list[Any] | deque[Any], depth: int) -> Undo:
    held = list(value)
    inner = [_inside(one, depth - 1) for one in held]

    def restore() -> None:
        if list(map(id, value)) != list(map(id, held)):
            value.clear()
            value.extend(held)
        for undo in inner:
            undo()

    return restore


def _set(value: set[Any]) -> Undo:
    held = set(value)

    def restore() -> None:
        if value != held:
            value.clear()
            value.update(held)

    return restore


def _tensor(value: Tensor) -> Undo:
    if value.nbytes > LARGEST_TENSOR:
        return _nothing
    held, version = value.detach().clone(), value._version

    def restore() -> None:
        if value._version != version:
            value.resize_(held.shape).copy_(held)

    return restore


def _nothing() -> None:
    return None
