"""The table of operators: which function computes which operator of which opset."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .node import Node

Call: TypeAlias = Callable[..., Any]
"""Takes the inputs in order, absent ones at the end left out; returns the output, or a tuple of several."""
Build: TypeAlias = Callable[[Node], Call]
OnQuantised: TypeAlias = Literal["converts", "first", "all", "wraps", "itself"]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Operator:
    """How an operator is computed, from opset ``since`` on."""

    since: int
    build: Build
    """Reads a node once, when a module is made, and returns what computes it."""
    host: frozenset[int]
    """Inputs that are read as Python numbers, and so best stay on the CPU."""
    blind: frozenset[int]
    """Inputs through which no gradient goes."""
    differentiable: bool
    straight: Callable[[Node], bool]
    """Whether a node's gradient is a straight-through surrogate."""
    quantised: OnQuantised
    """Whether it converts ``Quantised`` to integers without gradients, works on the values of its first input or of
    all as if they were floats, may leave the range of their type so that they wrap around, or knows ``Quantised``."""
    random: bool
    shaped: bool
    """Whether the shapes of its inputs, and the values of those on the host, determine the shapes of its outputs."""


_table: dict[tuple[str, str], list[Operator]] = {}


def operator(
    *names: str,
    since: int = 1,
    domain: str = "",
    host: Collection[int] = (),
    blind: Collection[int] = (),
    differentiable: bool = True,
    straight: bool | Callable[[Node], bool] = False,
    quantised: OnQuantised = "converts",
    random: bool = False,
    shaped: bool = True,
) -> Callable[[Build], Build]:
    """Register a function as what computes operators from opset ``since`` on."""

    is_straight = straight if callable(straight) else (lambda node: bool(straight))

    def register(build: Build) -> Build:
        for name in names:
            entries = _table.setdefault((domain, name), [])
            if any(entry.since == since for entry in entries):
                raise ValueError(f"{name} is registered twice for opset {since}")
            entries.append(
                Operator(
                    since,
                    build,
                    frozenset(host),
                    frozenset(blind),
                    differentiable,
                    is_straight,
                    quantised,
                    random,
                    shaped,
                )
            )
            entries.sort(key=lambda entry: entry.since)
        return build

    return register


def simple(name: str, call: Call, **facts: Any) -> None:
    """Register a function of the inputs alone, for an operator without attributes."""
    operator(name, **facts)(lambda node: call)


def find_operator(domain: str, name: str, opset: int) -> Operator | None:
    """The newest entry that an opset allows."""
    fitting = [entry for entry in _table.get((domain, name), []) if entry.since <= opset]
    return fitting[-1] if fitting else None


def known_operators() -> list[tuple[str, str]]:
    """Domain and name of every operator in the table, sorted."""
    return sorted(_table)
