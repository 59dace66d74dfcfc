"""The options of a plugin, with their types, defaults and help, read from its signature and docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

import docstring_parser

from .specs import describe_type


@dataclass(frozen=True)
class Option:
    """One option of a plugin."""

    name: str
    type: str
    default: str | None
    """None if the option is required."""
    help: str


def options_of(cls: type) -> list[Option]:
    """The fields of a dataclass that its constructor takes."""
    hints, texts = get_type_hints(cls), _texts_of(*cls.__mro__)
    found = []
    for field in dataclasses.fields(cls):
        if field.init:
            default = None if field.default is dataclasses.MISSING else _shown(field.default)
            if field.default_factory is not dataclasses.MISSING:
                default = _shown(field.default_factory())
            found.append(Option(field.name, describe_type(hints[field.name]), default, texts.get(field.name, "")))
    return found


def keywords_of(function: Callable[..., Any]) -> list[Option]:
    """The keyword-only parameters of a function."""
    hints, texts = get_type_hints(function), _texts_of(function)
    return [
        Option(name, describe_type(hints[name]), _shown(given.default), texts.get(name, ""))
        for name, given in inspect.signature(function).parameters.items()
        if given.kind is given.KEYWORD_ONLY
    ]


def summary_of(thing: object) -> str:
    """The first sentence of a docstring."""
    return _plain(docstring_parser.parse(inspect.getdoc(thing) or "").short_description or "")


def _texts_of(*documented: object) -> dict[str, str]:
    texts: dict[str, str] = {}
    for thing in documented:
        if thing is object:
            continue
        parsed = docstring_parser.parse(
            inspect.cleandoc(thing.__doc__ or ""), style=docstring_parser.DocstringStyle.NUMPYDOC
        )
        for parameter in parsed.params:
            for name in parameter.arg_name.split(", "):
                texts.setdefault(name, _plain(parameter.description or ""))
    return texts


def _plain(text: str) -> str:
    """Docstring markup as plain text on one line."""
    return " ".join(re.sub(r"(:\w+:)?`+([^`]*)`+", r"\2", text).split())


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value)
