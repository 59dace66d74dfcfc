"""ATTACK specs, ``NAME:key=value,...``: from a spec to an attack, and back."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ConfigError, PluginError
from ..specs import build, split_spec
from ..torch_tools.fingerprint import fingerprint
from .attack import Attack, attacks


@dataclass(frozen=True)
class NamedAttack:
    """An attack and the spec that rebuilds it."""

    spec: str
    attack: Attack

    @property
    def options(self) -> dict[str, Any]:
        """All options with their values; values that JSON cannot hold become text."""
        return {name: value if _is_plain(value) else _text(value) for name, value in _options(self.attack).items()}


def read_attack(given: str | Attack) -> NamedAttack:
    """Read an ATTACK spec (``pgd:steps=40,restarts=2``); an attack object is accepted as it is.

    If the attack has an option ``name``, the first part needs no key: ``foolbox:LinfPGD,steps=40``.

    Raises
    ------
    SpecError, PluginError, ConfigError
        The spec cannot be read, the attack does not exist, or an option is wrong.
    """
    if not isinstance(given, str | Attack):
        raise ConfigError(f"attacks: expected ATTACK specs or attacks, got {type(given).__name__}")
    if isinstance(given, Attack):
        return NamedAttack(_spec_of(given), given)
    cls = attacks.get(split_spec(given.partition(":")[0])[0])
    named = dataclasses.is_dataclass(cls) and any(field.name == "name" for field in dataclasses.fields(cls))
    name, options = split_spec(given, first="name" if named else None)
    if dataclasses.is_dataclass(cls):
        return NamedAttack(given, build(cls, options, what=f"attack {name!r}"))
    if options:
        raise ConfigError(f"attack {name!r} takes no options, got {', '.join(options)}")
    try:
        return NamedAttack(given, cls())
    except TypeError as error:
        raise PluginError(f"cannot create attack {name!r}: {error}; make its class a dataclass", name) from error


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _text(value: object) -> str:
    """An option's value as text that is the same in every process: no address, and all of a tensor."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__}({fingerprint(value)[:12]})"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _options(attack: Attack, *, changed: bool = False) -> dict[str, Any]:
    """An attack's options, or only those ``changed`` from their defaults; a mapping ``options`` is merged in."""
    found: dict[str, Any] = {}
    fields: Sequence[dataclasses.Field[Any]] = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    for field in fields:
        value = getattr(attack, field.name)
        if field.name == "options" and isinstance(value, Mapping):
            found |= value
        elif not changed or value != field.default:
            found[field.name] = value
    return found


def _spec_of(attack: Attack) -> str:
    try:
        name = attacks.name_of(type(attack))
    except PluginError:
        name = type(attack).__name__
    options = ",".join(f"{key}={_text(value)}" for key, value in _options(attack, changed=True).items())
    return name + (":" if options else "") + options
