"""The parts of what classifiers return, and copies with another part."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from purifier.containers import parts_of, with_part
from purifier.errors import ClassifierError

OLD, OTHER, NEW = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)


class Named(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    first: Any
    second: Any
    derived: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass
class Both(OrderedDict):  # type: ignore[type-arg]  # as Hugging Face's ModelOutput
    """A dict and a dataclass, whose entries are attributes too."""

    first: Any = None
    second: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self[field.name] = getattr(self, field.name)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        return Both, tuple(self.values())


CONTAINERS = (
    (OTHER, OLD),
    [OTHER, OLD],
    Named(OTHER, OLD),
    {"first": OTHER, "second": OLD},
    {1: OTHER, 2: OLD},
    OrderedDict(first=OTHER, second=OLD),
    UserDict(first=OTHER, second=OLD),
    Frozen(OTHER, OLD),
    Both(OTHER, OLD),
    torch.return_types.max((OTHER, OLD)),
)


@pytest.mark.parametrize("output", CONTAINERS, ids=lambda output: type(output).__name__)
def test_a_copy_has_one_other_part(output: Any) -> None:
    changed = with_part(output, 1, NEW)
    assert type(changed) is type(output)
    assert [name for name, _ in parts_of(changed)] == [name for name, _ in parts_of(output)]
    assert _same(changed, (OTHER, NEW))
    assert _same(output, (OTHER, OLD))
    if isinstance(output, Both):
        assert changed.second is changed["second"] is NEW


def _same(output: Any, wanted: tuple[Tensor, ...]) -> bool:
    return all(value is want for (_, value), want in zip(parts_of(output), wanted, strict=False))


def test_a_tensor_is_replaced_itself_and_what_cannot_be_set_is_an_error() -> None:
    assert with_part(OLD, 0, NEW) is NEW
    with pytest.raises(ClassifierError, match="returns a mappingproxy, whose entries cannot be replaced"):
        with_part(MappingProxyType({"first": OLD}), 0, NEW)
