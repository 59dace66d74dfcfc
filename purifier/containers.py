"""The parts of what a classifier returns: a tensor, tuple, list, dict or dataclass, such as Hugging Face's."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from .errors import ClassifierError


def parts_of(output: Any) -> list[tuple[str | None, Any]]:
    """The parts of a classifier's output with their names, if they have any."""
    if isinstance(output, Mapping):
        return [(str(name), value) for name, value in output.items()]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", [None] * len(output))  # a named tuple has _fields
        return list(zip(names, output, strict=True))
    return [(None, output)]


def with_part(output: Any, place: int, part: Tensor) -> Any:
    """A shallow copy of a classifier's output, of the same type, with another part at a position of ``parts_of``.

    Raises
    ------
    ClassifierError
        Nothing can be set in an object of this type.
    """
    if isinstance(output, Tensor):
        return part
    if isinstance(output, tuple):
        values = [*output[:place], part, *output[place + 1 :]]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    if not isinstance(output, MutableMapping | list) and not dataclasses.is_dataclass(output):
        raise ClassifierError(f"the classifier returns a {type(output).__name__}, whose entries cannot be replaced", "")
    kind: Any = type(output)
    # torch.compile cannot trace copy.copy of these
    changed: Any = kind(output) if kind in (dict, OrderedDict, list) else copy.copy(output)
    if isinstance(output, MutableMapping):
        changed[list(output)[place]] = part
    elif isinstance(output, list):
        changed[place] = part
    else:
        object.__setattr__(changed, dataclasses.fields(output)[place].name, part)  # also into a frozen one
    return changed
