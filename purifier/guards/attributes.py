"""A classifier's own attributes, as its guard hands them out: readable, but never a way past the purifier.

Everything that is a module is handed out as a stand-in. A stand-in shares the module's class and its ``__dict__``, so
it has the same weights and settings, hooks that are registered on it run, and what is set on it is set on the module.
Only its call differs: the classifier's stand-in, to which the classifier's methods are bound, calls the guard, and a
layer's refuses. So a method that calls ``self(x)`` is guarded, one that only reads or sets works as before, and one
that passes images to a layer raises an error.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..errors import UnguardedError
from ..foreign_code import explained


def attribute_of(guard: nn.Module, classifier: nn.Module, name: str) -> Any:
    """The attribute of a guard's classifier, its methods bound to a stand-in that answers through the guard.

    Raises
    ------
    AttributeError
        The classifier has no such attribute.
    UnguardedError
        It would give answers that skip the purifier.
    """
    value = getattr(classifier, name)
    past = name.startswith("forward_") or isinstance(classifier, torch.jit.ScriptModule)
    if past and callable(value):  # a script's methods run in C++, and a forward_* may use the weights without a layer
        raise _unguarded(name)
    if isinstance(value, types.MethodType) and value.__self__ is classifier:
        return types.MethodType(value.__func__, _stand_in(classifier, "", guard))
    return _handed_out(value, name)


class StandIn:
    """A module whose calls go elsewhere; the first base of a class that inherits from the module's own."""

    __slots__ = ("__answer", "__module", "__path")
    __dict__: dict[str, Any]

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise _unguarded(type(self).__name__)  # a part of an nn.Sequential, [:3], is a new one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__answer(*args, **kwargs)

    @property
    def forward(self) -> Any:
        return self.__answer

    @property
    def _modules(self) -> Mapping[str, Any]:
        parts = self.__dict__["_modules"]
        return types.MappingProxyType({name: _handed_out(part, self.__inside(name)) for name, part in parts.items()})

    def __getattr__(self, name: str) -> Any:
        return _handed_out(super().__getattr__(name), self.__inside(name))  # type: ignore[misc]  # the module's class has it

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.__module if isinstance(value, StandIn) else value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (self.__module,)  # a copy is of the module, because it belongs to no guard

    def __eq__(self, other: object) -> bool:
        return self.__module is (other.__module if isinstance(other, StandIn) else other)

    def __hash__(self) -> int:
        return hash(self.__module)

    def __inside(self, name: str) -> str:
        return f"{self.__path}.{name}".lstrip(".")

    @staticmethod
    def of(module: nn.Module, path: str, answer: Callable[..., Any]) -> Any:
        """The stand-in for a module; ``path`` is its name in the classifier."""
        made: Any = object.__new__(_class_of(type(module)))  # type: ignore[arg-type]  # a class is hashable
        object.__setattr__(made, "__dict__", module.__dict__)
        for name, value in (("answer", answer), ("module", module), ("path", path)):
            object.__setattr__(made, f"_StandIn__{name}", value)
        return made


def _itself(module: nn.Module) -> nn.Module:
    return module


def _handed_out(value: Any, path: str) -> Any:
    """A stand-in for a module, a module's method bound to its stand-in, and anything else as it is."""
    if isinstance(value, StandIn):
        return value
    if isinstance(value, nn.Module):
        return _stand_in(value, path)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return types.MethodType(value.__func__, _stand_in(value.__self__, path))
    return value


def _stand_in(module: nn.Module, path: str, guard: nn.Module | None = None) -> Any:
    def refuse(*args: object, **kwargs: object) -> Any:
        raise _unguarded(path)

    if isinstance(module, StandIn):
        return module
    if isinstance(module, torch.jit.ScriptModule):
        raise _unguarded(path)
    return StandIn.of(module, path, refuse if guard is None else guard)


@lru_cache(maxsize=256)
def _class_of(kind: type[nn.Module]) -> type:
    with explained(f"{kind.__name__} cannot be handed out by a guard", UnguardedError, "use guarded.classifier"):
        return types.new_class(
            kind.__name__, (StandIn, kind), {}, lambda body: body.update(__slots__=(), __module__=kind.__module__)
        )


def _unguarded(path: str) -> UnguardedError:
    return UnguardedError(
        f"{path!r} of the guarded classifier would skip the purifier; call the guard itself, or, for answers without "
        "the purifier, use guarded.classifier"
    )
