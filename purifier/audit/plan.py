"""What an audit will do, settled and checked before any work: attacks, threats, routes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from ..classifier import PixelClassifier
from ..errors import ConfigError, PluginError, PurifierError
from ..interfaces import Attack, LatentSpace, Purifier, attacks
from ..specs import build, split_spec
from ..target import Route, check_differentiable, check_route
from ..threat import Threat
from .presets import Preset


@dataclass(frozen=True)
class NamedAttack:
    """An attack and the spec that rebuilds it."""

    spec: str
    attack: Attack

    @property
    def options(self) -> dict[str, Any]:
        """All options with their values; what JSON cannot hold becomes text."""
        return {name: value if _is_plain(value) else str(value) for name, value in _fields(self.attack).items()}


@dataclass(frozen=True)
class Job:
    """One attack within one threat along one route."""

    named: NamedAttack
    threat: Threat
    route: Route
    sequence: str | None = None
    """Jobs of one sequence and threat attack only what those before them left right; None: all images."""
    eot: int | None = None
    """Draws a gradient is averaged over; None: the audit's."""

    def __str__(self) -> str:
        return f"{self.named.spec} {self.route} {self.threat}" + ("" if self.eot is None else f" eot {self.eot}")


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
    _check_routes(routes)
    named = [read_attack(one) for one in given]
    for one in named:
        if [other.spec for other in named].count(one.spec) > 1:
            raise ConfigError(f"attack {one.spec!r} is given twice; give it once, or with other options")
        for threat in threats:
            _check_norm(one, threat)
    chosen = {one.spec: routes_of(one, classifier, purifier, routes) for one in named}
    return [Job(one, threat, route) for threat in threats for one in named for route in chosen[one.spec]]


def plan_preset(
    classifier: PixelClassifier,
    purifier: Purifier,
    preset: Preset,
    threats: Sequence[Threat],
    routes: Sequence[str] | None,
    *,
    random: bool,
) -> tuple[list[Job], list[str]]:
    """The jobs of a preset, and why some of its attacks are left out.

    A sequence goes along the routes that see the purifier, strongest first, another along ``oblivious``.

    Raises
    ------
    ConfigError
        None of its attacks can run.
    """
    _check_routes(routes)
    jobs, left_out = [], []
    for threat in threats:
        of_threat = []
        for one in map(read_attack, preset.attacks):
            try:
                _check_norm(one, threat)
                of_threat += [Job(one, threat, route) for route in routes_of(one, classifier, purifier, routes)]
            except PurifierError as error:
                left_out.append(str(error))
        if preset.sequence:
            of_threat.sort(key=lambda job: get_args(Route).index(job.route))  # stable: attacks stay in order
            of_threat = [replace(job, sequence=_sequence(job.route)) for job in of_threat]
        if preset.sweep and random and of_threat and of_threat[0].named.attack.needs == "gradient":
            jobs += [replace(of_threat[0], sequence=None, eot=eot) for eot in preset.sweep]
        jobs += of_threat
    if not jobs:
        raise ConfigError("no attack of the preset can run: " + "; ".join(dict.fromkeys(left_out)))
    return jobs, list(dict.fromkeys(left_out))


def routes_of(
    one: NamedAttack, classifier: PixelClassifier, purifier: Purifier, asked: Sequence[str] | None
) -> list[Route]:
    """The routes an attack takes through a guard, of those asked for, and ``oblivious`` where it can."""
    needs = one.attack.needs
    if needs == "latent":
        if not isinstance(purifier, LatentSpace):
            raise ConfigError(
                f"attack {one.spec!r} needs a purifier with a latent space (latent_of, decoded); "
                f"{type(purifier).__name__} has none"
            )
        possible: list[Route] = ["exact"]
    elif needs != "gradient":
        possible = ["none", "oblivious"]
    elif purifier.gradient == "exact" or (asked is not None and "exact" in asked):
        possible = ["exact", "bpda", "oblivious"]
    else:
        possible = ["bpda", "oblivious"]
    routes = [route for route in possible if asked is None or route in asked]
    if not routes:
        raise ConfigError(
            f"attack {one.spec!r} needs {needs} and can follow {', '.join(possible)}, "
            f"not {', '.join(asked or ())}; add one of these routes"
        )
    for route in routes:
        check_route(classifier, purifier, route)
        if needs in ("gradient", "latent"):
            check_differentiable(classifier, route)
    return routes if "oblivious" in routes or needs == "latent" else [*routes, "oblivious"]


def _sequence(route: Route) -> str:
    return "oblivious" if route == "oblivious" else "informed"


def _check_routes(routes: Sequence[str] | None) -> None:
    for route in routes or ():
        if route not in get_args(Route):
            raise ConfigError(f"route must be one of {', '.join(get_args(Route))}, got {route!r}")


def _check_norm(one: NamedAttack, threat: Threat) -> None:
    if threat.norm not in one.attack.norms:
        raise ConfigError(
            f"attack {one.spec!r} works in {', '.join(one.attack.norms)}, not in {threat.norm}; "
            "choose another attack or norm"
        )


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _fields(attack: Attack, *, changed: bool = False) -> dict[str, Any]:
    """An attack's options, all or those with other than their default values; its mapping ``options`` is among them."""
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
    options = ",".join(f"{key}={value}" for key, value in _fields(attack, changed=True).items())
    return name + (":" if options else "") + options
