"""Parse specs, the strings users type: ``NAME:key=value,...`` -> a plugin's options, converted by its type hints."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError, SpecError

T = TypeVar("T")


def split_spec(spec: str, *, first: str | None = None) -> tuple[str, dict[str, str]]:
    """``"pgd:steps=40,restarts=2"`` -> ``("pgd", {"steps": "40", "restarts": "2"})``.

    With ``first="name"``, a first part without ``=`` is the value of that option: ``foolbox:LinfPGD,steps=40``.
    """
    name, colon, rest = spec.partition(":")
    options: dict[str, str] = {}
    for place, part in enumerate(rest.split(",") if colon else ()):
        key, equals, value = part.partition("=")
        if first and place == 0 and part.strip() and not equals:
            key, equals, value = first, "=", part
        key = key.strip().replace("-", "_")
        if not key or not equals:
            raise SpecError(f"cannot read {part!r} in {spec!r}: expected NAME:key=value,key=value", spec)
        if key in options:
            raise SpecError(f"{key!r} is given twice in {spec!r}", spec)
        options[key] = value.strip()
    if not name:
        raise SpecError(f"no plugin name in {spec!r}: expected NAME or NAME:key=value", spec)
    return name, options


def build(cls: type[T], options: Mapping[str, object], *, what: str) -> T:
    """Make a dataclass from options; strings and JSON values are converted to the fields' types.

    A mapping field named ``options`` takes every option that is not a field itself; strings that look like numbers,
    true, false or none are converted.

    Raises
    ------
    ConfigError
        An option is unknown, missing or of the wrong type, or has an invalid value.
    """
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(fields))
    if "options" in fields and unknown:
        extra = {name: _guess(options[name]) for name in unknown}
        options = {**{name: options[name] for name in fields if name in options}, "options": extra}
    elif unknown:
        raise ConfigError(f"{what} has no option {unknown[0]!r}; its options are: {', '.join(fields) or 'none'}")
    missing = [
        name
        for name, field in fields.items()
        if name not in options and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{what} needs the option {missing[0]!r} ({describe_type(hints[missing[0]])})")
    values = {}
    for name, value in options.items():
        values[name] = value if name == "options" else converted(value, hints[name], name, what=what)
    try:
        return cls(**values)
    except (ValueError, ArithmeticError, MemoryError) as error:
        raise ConfigError(f"{what}: invalid options: {error or type(error).__name__}; change them") from error


def converted(value: object, hint: Any, name: str, *, what: str) -> object:
    """The value of the option ``name`` as its type says; raises ``ConfigError`` if it cannot be one."""
    try:
        return _convert(value, hint)
    except (ValueError, OverflowError):
        raise ConfigError(f"{what}: option {name!r}: expected {describe_type(hint)}, got {value!r}") from None


def _convert(value: object, hint: Any) -> object:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, args)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError
    if origin is tuple:
        # An empty part, as in "x" or "1x", is no number and so an error.
        parts = re.split(r"\s*[x,]\s*|\s+", value.strip()) if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or (args[-1] is not ... and len(parts) != len(args)):
            raise ValueError
        return tuple(_convert(part, args[0]) for part in parts)
    if hint is bool:
        if isinstance(value, bool):
            return value
        text = str(value).lower()
        if text not in ("true", "false", "1", "0"):
            raise ValueError
        return text in ("true", "1")
    if hint is str:
        if not isinstance(value, str):
            raise ValueError
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if hint is int and isinstance(value, float):
        raise ValueError
    return number(value) if hint is float and isinstance(value, str) else hint(value)


def number(text: str) -> float:
    """``0.1`` or ``8/255`` as a float; raises ``ValueError`` for anything else."""
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except ZeroDivisionError:
        raise ValueError(text) from None


def _guess(value: object) -> object:
    if not isinstance(value, str):
        return value
    for kind in (int, number):
        with contextlib.suppress(ValueError):
            return kind(value)
    return {"true": True, "false": False, "none": None}.get(value.lower(), value)


def _convert_union(value: object, options: tuple[Any, ...]) -> object:
    if type(None) in options and (value is None or value in ("none", "None")):
        return None
    for option in options:
        try:
            if option is not type(None):
                return _convert(value, option)
        except ValueError:
            continue
    raise ValueError


def describe_type(hint: Any) -> str:
    """A type hint as messages and help show it: ``one of ce, trades``, ``float or int``."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe_type(option) for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is tuple:
        return "numbers such as " + ("0.5 0.5 0.5" if get_args(hint)[0] is float else "1x28x28")
    if get_origin(hint) is Sequence:
        return "numbers"
    if get_origin(hint) is Mapping:
        return "any other option"
    return hint.__name__ if isinstance(hint, type) else str(hint)
