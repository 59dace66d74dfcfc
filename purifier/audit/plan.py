"""What an audit will do, settled and checked before any work: attacks, threats, routes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ..classifier import PixelClassifier
from ..errors import ConfigError, PluginError
from ..interfaces import Attack, Purifier, attacks
from ..specs import build, split_spec
from ..target import Route, check_differentiable, check_route
from ..threat import Threat


@dataclass(frozen=True)
class NamedAttack:
    """An attack and the spec that rebuilds it."""

    spec: str
    attack: Attack

    @property
    def options(self) -> dict[str, Any]:
        """All options with their values; what JSON cannot hold becomes text."""
        attack = self.attack
        if not dataclasses.is_dataclass(attack):
            return {}
        values = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}
        return {name: value if _is_plain(value) else str(value) for name, value in values.items()}


@dataclass(frozen=True)
class Job:
    """One attack within one threat along one route."""

    named: NamedAttack
    threat: Threat
    route: Route

    def __str__(self) -> str:
        return f"{self.named.spec} {self.route} {self.threat}"


def read_attack(given: str | Attack) -> NamedAttack:
    """An attack from an ATTACK spec (``pgd:steps=40,restarts=2``) or from itself."""
    if not isinstance(given, str | Attack):
        raise ConfigError(f"attacks: expected ATTACK specs or attacks, got {type(given).__name__}")
    if isinstance(given, Attack):
        return NamedAttack(_spec_of(given), given)
    name, options = split_spec(given, first="name")
    cls = attacks.get(name)
    if dataclasses.is_dataclass(cls):
        return NamedAttack(given, build(cls, options, what=f"attack {name!r}"))
    if options:
        raise ConfigError(f"attack {name!r} takes no options, got {', '.join(options)}")
    try:
        return NamedAttack(given, cls())
    except TypeError as error:
        raise PluginError(f"attack {name!r} cannot be made: {error}; make it a dataclass", name) from error


def plan(
    classifier: PixelClassifier,
    purifier: Purifier,
    given: Sequence[str | Attack],
    threats: Sequence[Threat],
    routes: Sequence[str] | None,
) -> list[Job]:
    """All jobs of an audit. ``oblivious`` is always there: it is the attack on the undefended classifier.

    Raises
    ------
    ConfigError
        An attack is given twice, cannot work in the norm, or has no route among ``routes``.
    GradientError
        A route cannot be followed through this purifier or classifier.
    """
    for route in routes or ():
        if route not in get_args(Route):
            raise ConfigError(f"route must be one of {', '.join(get_args(Route))}, got {route!r}")
    named = [read_attack(one) for one in given]
    for one in named:
        if [other.spec for other in named].count(one.spec) > 1:
            raise ConfigError(f"attack {one.spec!r} is given twice; give it once, or with other options")
        for threat in threats:
            if threat.norm not in one.attack.norms:
                raise ConfigError(
                    f"attack {one.spec!r} works in {', '.join(one.attack.norms)}, not in {threat.norm}; "
                    "choose another attack or norm"
                )
    chosen = {one.spec: _routes(one, classifier, purifier, routes) for one in named}
    return [Job(one, threat, route) for threat in threats for one in named for route in chosen[one.spec]]


def _routes(
    one: NamedAttack, classifier: PixelClassifier, purifier: Purifier, asked: Sequence[str] | None
) -> list[Route]:
    if one.attack.needs != "gradient":
        possible: list[Route] = ["none", "oblivious"]
    elif purifier.gradient == "exact" or (asked is not None and "exact" in asked):
        possible = ["exact", "bpda", "oblivious"]
    else:
        possible = ["bpda", "oblivious"]
    routes = [route for route in possible if asked is None or route in asked]
    if not routes:
        raise ConfigError(
            f"attack {one.spec!r} needs {one.attack.needs} and can follow {', '.join(possible)}, "
            f"not {', '.join(asked or ())}; add one of these routes"
        )
    for route in routes:
        check_route(classifier, purifier, route)
        if one.attack.needs == "gradient":
            check_differentiable(classifier, route)
    return routes if "oblivious" in routes else [*routes, "oblivious"]


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _spec_of(attack: Attack) -> str:
    try:
        name = attacks.name_of(type(attack))
    except PluginError:
        name = type(attack).__name__
    changed: Mapping[str, Any] = {}
    if dataclasses.is_dataclass(attack):
        changed = {
            field.name: getattr(attack, field.name)
            for field in dataclasses.fields(attack)
            if getattr(attack, field.name) != field.default
        }
    return name + (":" if changed else "") + ",".join(f"{key}={value}" for key, value in changed.items())
