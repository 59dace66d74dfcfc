"""The plan of an audit, made and checked before any attack runs: attacks, threats, routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from ..attacking.attack import Attack
from ..attacking.specs import NamedAttack, read_attack
from ..attacking.target import check_differentiable, check_route
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import LatentSpace, Purifier
from ..errors import ConfigError, GradientError
from ..vocabulary import Route
from .presets import Preset

QUERY_NEEDS = ("scores", "labels")
"""The ``needs`` of query attacks, which use no gradients."""


@dataclass(frozen=True)
class Job:
    """One attack within one threat along one route."""

    named: NamedAttack
    threat: Threat
    route: Route
    sequence: str | None = None
    """Jobs of one sequence and threat attack only the images that earlier jobs left right; None: all images."""
    eot: int | None = None
    """Number of draws a gradient is averaged over; None: the audit's ``eot``."""

    def draws(self, eot: int) -> int:
        """How many draws an answer is averaged over in an audit with ``eot``; queries are never averaged."""
        if self.route == "oblivious" or self.named.attack.needs in QUERY_NEEDS:
            return 1
        return eot if self.eot is None else self.eot

    def __str__(self) -> str:
        return f"{self.named.spec} {self.route} {self.threat}" + ("" if self.eot is None else f" eot {self.eot}")


def plan(
    classifier: PixelClassifier,
    purifier: Purifier,
    given: Sequence[str | Attack],
    threats: Sequence[Threat],
    routes: Sequence[str] | None,
) -> list[Job]:
    """All jobs of an audit. ``oblivious`` is always included: it is the attack on the undefended classifier.

    Raises
    ------
    ConfigError
        An attack is given twice, does not support the norm, or cannot follow any of ``routes``.
    GradientError
        A route cannot be followed through this purifier or classifier.
    """
    _check_routes(routes)
    named = [read_attack(one) for one in given]
    for one in named:
        if [other.spec for other in named].count(one.spec) > 1:
            raise ConfigError(f"attack {one.spec!r} is given twice; give it once, or with different options")
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

    One sequence follows the routes that see the purifier, strongest first; another follows ``oblivious``. In both,
    query attacks come last.

    Raises
    ------
    ConfigError
        None of its attacks can run.
    """
    _check_routes(routes)
    jobs, left_out = [], []
    apart, sequence = ([read_attack(spec) for spec in specs] for specs in (preset.apart, preset.sequence))
    for threat in threats:

        def jobs_of(one: NamedAttack, threat: Threat = threat) -> list[Job]:
            try:
                _check_norm(one, threat)
                return [Job(one, threat, route) for route in routes_of(one, classifier, purifier, routes)]
            except (ConfigError, GradientError) as error:
                left_out.append(str(error))
                return []

        first = [job for one in apart for job in jobs_of(one)]
        if preset.sweep and random and first and first[0].named.attack.needs == "gradient":
            jobs += [replace(first[0], eot=eot) for eot in preset.sweep]
        jobs += first
        in_sequence = [replace(job, sequence=_sequence(job.route)) for one in sequence for job in jobs_of(one)]
        jobs += sorted(in_sequence, key=_order)  # stable: attacks on the same route keep their order
    if not jobs:
        raise ConfigError("no attack of the preset can run: " + "; ".join(dict.fromkeys(left_out)))
    return jobs, list(dict.fromkeys(left_out))


def routes_of(
    one: NamedAttack, classifier: PixelClassifier, purifier: Purifier, requested: Sequence[str] | None
) -> list[Route]:
    """The requested routes that the attack can follow; ``oblivious`` is always added, except for latent attacks."""
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
    elif purifier.gradient == "exact" or (requested is not None and "exact" in requested):
        possible = ["exact", "bpda", "oblivious"]
    else:
        possible = ["bpda", "oblivious"]
    routes = [route for route in possible if requested is None or route in requested]
    if not routes:
        raise ConfigError(
            f"attack {one.spec!r} needs {needs}: expected one of the routes {', '.join(possible)}, "
            f"got {', '.join(requested or ())}; add one of them"
        )
    for route in routes:
        check_route(classifier, purifier, route)
        if needs in ("gradient", "latent"):
            check_differentiable(classifier, route)
    return routes if "oblivious" in routes or needs == "latent" else [*routes, "oblivious"]


def _order(job: Job) -> tuple[int, bool]:
    return get_args(Route).index(job.route), job.named.attack.needs in QUERY_NEEDS


def _sequence(route: Route) -> str:
    return "oblivious" if route == "oblivious" else "informed"


def _check_routes(routes: Sequence[str] | None) -> None:
    for route in routes or ():
        if route not in get_args(Route):
            raise ConfigError(f"route must be one of {', '.join(get_args(Route))}, got {route!r}")


def _check_norm(one: NamedAttack, threat: Threat) -> None:
    if threat.norm not in one.attack.norms:
        raise ConfigError(
            f"attack {one.spec!r} supports {', '.join(one.attack.norms)}, not {threat.norm}; "
            "choose another attack or norm"
        )
