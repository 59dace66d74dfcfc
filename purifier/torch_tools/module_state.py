"""What modules are made of: to see what foreign code changes of it, and to put it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

PLAIN = (bool, int, float, str, type(None))
"""Values of these types are the same if they are equal; all others if they are the same object."""
OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


class _Entries(NamedTuple):
    """The attributes of a module or class, or the entries of one of a module's dicts."""

    label: str
    """With a place for the name of an entry."""
    owner: dict[Any, Any] | type
    before: Mapping[Any, Any]


class _Tensor(NamedTuple):
    """A weight or buffer, and what it was."""

    label: str
    now: Tensor
    value: Tensor
    requires_grad: bool
    gradient: Tensor | None


class ModuleState:
    """The weights, buffers, modes, hooks, layers, attributes and classes of some modules as they are now.

    It holds a copy of the weights and buffers, because they can change without a trace (``weight.data``). It does not
    look into what attributes hold, nor at torch's own classes.
    """

    def __init__(self, **modules: nn.Module) -> None:
        self.own: frozenset[str] | None = None
        """Changes that the modules make themselves when they are asked, which are left as they are; None: unknown."""
        parts = [(what, name, part) for what, module in modules.items() for name, part in module.named_modules()]
        self._modes = [(f"the mode (train, eval) of {_place(*where)}", part, part.training) for *where, part in parts]
        self._entries = [found for *where, part in parts for found in _entries_of(part, _place(*where))]
        kinds = dict.fromkeys(kind for _, _, part in parts for kind in type(part).__mro__)
        self._entries += [
            _Entries(f"{{!r}} of the class {kind.__name__}", kind, dict(vars(kind)))
            for kind in kinds
            if kind is not object and kind.__module__.partition(".")[0] != "torch"
        ]
        self._tensors = [found for what, module in modules.items() for found in _tensors_of(module, what)]

    def changes(self) -> list[str]:
        """What is no longer as it was, in words, but for what the modules change themselves."""
        return [change for change, _ in self._differences()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what ``changes`` says."""
        for _, put_back in list(self._differences()):
            put_back()

    def _differences(self) -> Iterator[tuple[str, Callable[[], object]]]:
        for change, put_back in self._all_differences():
            if self.own is None or change not in self.own:
                yield change, put_back

    def _all_differences(self) -> Iterator[tuple[str, Callable[[], object]]]:
        for label, part, mode in self._modes:
            if part.training != mode:
                yield label, partial(setattr, part, "training", mode)
        for label, owner, before in self._entries:
            now = vars(owner) if isinstance(owner, type) else owner
            for name in dict.fromkeys([*before, *now]):
                if name in OF_TORCH or str(name).startswith("__"):
                    continue
                if name not in now or name not in before or not _same(now[name], before[name]):
                    yield label.format(name), partial(_put_back, owner, name, before)
        for held in self._tensors:
            if not _same_values(held.now, held.value):
                yield held.label, partial(_put_values_back, held)
            if held.now.requires_grad != held.requires_grad:
                yield f"requires_grad of {held.label}", partial(held.now.requires_grad_, held.requires_grad)
            if held.now.grad is not held.gradient:
                yield f"the gradient of {held.label}", partial(setattr, held.now, "grad", held.gradient)


def _place(what: str, name: str) -> str:
    """Where a part of a module is, as the module's author knows it: a classifier is wrapped as ``module``."""
    own = name.removeprefix("module").removeprefix(".") if what == "classifier" else name
    return f"{own!r} of the {what}" if own else f"the {what}"


def _entries_of(part: nn.Module, place: str) -> Iterator[_Entries]:
    for name, value in vars(part).items():
        if name in OF_TORCH and isinstance(value, dict):  # those of a ScriptModule are no dicts
            if "hooks" in name:
                yield _Entries(f"a hook of {place}", value, dict(value))
            elif name in ("_parameters", "_buffers", "_modules"):
                yield _Entries(f"{{!r}} of {place}", value, dict(value))
    attributes = {name: value for name, value in vars(part).items() if name not in OF_TORCH}
    yield _Entries(f"{{!r}} of {place}", vars(part), attributes)


def _tensors_of(module: nn.Module, what: str) -> Iterator[_Tensor]:
    for kind, named in (("weight", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in named:
            if not is_lazy(tensor):
                label = f"the {kind} {_place(what, name)}"
                yield _Tensor(label, tensor, tensor.detach().clone(), tensor.requires_grad, tensor.grad)


def _same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, PLAIN) and one == other)


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN is equal to itself."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def _put_back(owner: dict[Any, Any] | type, name: Any, before: Mapping[Any, Any]) -> None:
    if isinstance(owner, type):
        if name in before:
            setattr(owner, name, before[name])
        else:
            delattr(owner, name)
    elif name in before:
        owner[name] = before[name]
    else:
        owner.pop(name, None)


def _put_values_back(held: _Tensor) -> None:
    now, value = held.now, held.value
    if (now.shape, now.dtype, now.device) != (value.shape, value.dtype, value.device):
        now.data = value.clone()
    else:
        now.data.copy_(value)  # in its own memory layout
