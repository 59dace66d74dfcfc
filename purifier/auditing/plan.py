"""The plan of an audit, made and checked before any attack runs: attacks, threats, routes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from ..attacking.attack import Attack
from ..attacking.specs import NamedAttack, read_attack
from ..attacking.target import check_differentiable, check_route
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier, latent_space_of
from ..errors import ConfigError, GradientError, about
from ..vocabulary import Route
from .presets import BY_LABELS, EVADING, Preset
from .report import Model

QUERY_NEEDS = ("scores", "labels")
"""The ``needs`` of query attacks, which use no gradients."""


@dataclass(frozen=True)
class Job:
    """One attack within one threat along one route."""

    named: NamedAttack
    threat: Threat
    route: Route
    model: Model = "guarded"
    """The model attacked; along ``oblivious`` the classifier alone is, and the images are also tried on the guard."""
    sequence: str | None = None
    """Jobs of one sequence and threat attack only the images that earlier jobs left right; None: all images."""
    eot: int | None = None
    """Number of draws a gradient is averaged over; None: the audit's ``eot``."""

    def draws(self, eot: int) -> int:
        """How many draws an answer is averaged over in an audit with ``eot``.

        Queries are never averaged, and without a purifier there is nothing to draw.
        """
        if self.model == "undefended" or self.route == "oblivious" or self.named.attack.needs in QUERY_NEEDS:
            return 1
        return eot if self.eot is None else self.eot

    def __str__(self) -> str:
        route = self.route if self.model == "guarded" else f"{self.model} {self.route}"
        return f"{self.named.spec} {route} {self.threat}" + ("" if self.eot is None else f" eot {self.eot}")


def plan(
    classifier: PixelClassifier,
    purifier: Purifier | None,
    given: Sequence[str | Attack],
    threats: Sequence[Threat],
    routes: Sequence[str] | None,
    *,
    calibrated: bool,
) -> list[Job]:
    """All jobs of an audit of a guard, or without a purifier of the classifier alone.

    The undefended classifier is always attacked, too: along ``oblivious``, or apart from the guard.

    Raises
    ------
    ConfigError
        An attack is given twice, does not support the norm, cannot follow any of ``routes``, or needs a threshold
        although nothing is ``calibrated``.
    GradientError
        A route cannot be followed through this purifier or classifier.
    """
    _check_routes(routes)
    named = [read_attack(one) for one in given]
    for one in named:
        if [other.spec for other in named].count(one.spec) > 1:
            raise ConfigError(f"attack {one.spec!r} is given twice; give it once, or with different options")
        if one.attack.needs_threshold and not calibrated:
            raise _no_threshold(one, purifier)
        for threat in threats:
            _check_norm(one, threat)
    chosen = {one.spec: jobs_of(one, classifier, purifier, routes) for one in named}
    return [replace(job, threat=threat) for threat in threats for one in named for job in chosen[one.spec]]


def plan_preset(
    classifier: PixelClassifier,
    purifier: Purifier | None,
    preset: Preset,
    threats: Sequence[Threat],
    routes: Sequence[str] | None,
    *,
    random: bool,
    rejecting: bool = False,
) -> tuple[list[Job], list[str]]:
    """The jobs of a preset, and why some of its attacks are left out.

    One sequence follows the routes that see the purifier, strongest first; another follows ``oblivious``. In both,
    query attacks come last. A guard that is ``rejecting`` images is also attacked by one that evades its detector.

    Raises
    ------
    ConfigError
        None of its attacks can run.
    """
    _check_routes(routes)
    jobs, left_out = [], []
    # An exported guard, which is given as a classifier, has a score of its own.
    gradients = classifier.differentiable and not (purifier is None and classifier.hides_score)
    evading = EVADING[gradients] if rejecting else ()
    by_labels = (BY_LABELS,) if classifier.labels_only and BY_LABELS not in preset.sequence else ()
    specs = dict.fromkeys((*preset.apart, *evading)), (*preset.sequence, *by_labels)
    apart, sequence = ([read_attack(spec) for spec in group] for group in specs)
    for threat in threats:

        def at_threat(one: NamedAttack, threat: Threat = threat) -> list[Job]:
            try:
                _check_norm(one, threat)
                return [replace(job, threat=threat) for job in jobs_of(one, classifier, purifier, routes)]
            except (ConfigError, GradientError) as error:
                left_out.append(str(error))
                return []

        first = [job for one in apart for job in at_threat(one)]
        if preset.sweep and random and first and first[0].named.attack.needs == "gradient":
            jobs += [replace(first[0], eot=eot) for eot in preset.sweep]
        jobs += first
        in_sequence = [replace(job, sequence=_sequence(job)) for one in sequence for job in at_threat(one)]
        jobs += sorted(in_sequence, key=_order)  # stable: attacks on the same route keep their order
    if not jobs:
        raise ConfigError("no attack of the preset can run: " + "; ".join(dict.fromkeys(left_out)))
    return jobs, list(dict.fromkeys(left_out))


def jobs_of(
    one: NamedAttack, classifier: PixelClassifier, purifier: Purifier | None, requested: Sequence[str] | None
) -> list[Job]:
    """The attack along each requested route that it can follow, and on the undefended classifier; at no budget yet."""
    needs, nothing = one.attack.needs, Threat("linf", 0)
    queries = needs in QUERY_NEEDS
    if needs == "scores" and classifier.labels_only:
        raise ConfigError(
            f"attack {one.spec!r} needs logits, and the classifier gives labels only; use one that needs labels, such "
            f"as {BY_LABELS}"
        )
    alone: Route = "bpda" if classifier.surrogates else "exact"
    possible = ["none"] if queries else [alone]
    if purifier is not None:
        possible = _routes_through(one, purifier, requested, rounds=bool(classifier.surrogates))
    elif needs == "latent":
        raise ConfigError(f"attack {one.spec!r} needs a purifier with a latent space, but there is no purifier")
    routes = [route for route in get_args(Route) if route in possible and (requested is None or route in requested)]
    if not routes:
        raise ConfigError(
            f"attack {one.spec!r} needs {needs}: expected one of the routes {', '.join(possible)}, "
            f"got {', '.join(requested or ())}; add one of them"
        )
    for route in routes:
        if purifier is not None:
            check_route(classifier, purifier, route)
        if not queries:
            check_differentiable(classifier, route)
    if purifier is None:
        return [Job(one, nothing, route, model="undefended") for route in routes]
    jobs = [Job(one, nothing, route) for route in routes]
    if "oblivious" not in routes and needs != "latent":
        jobs.append(Job(one, nothing, "none" if queries else alone, model="undefended"))
    return jobs


def _routes_through(
    one: NamedAttack, purifier: Purifier, requested: Sequence[str] | None, *, rounds: bool
) -> list[str]:
    """The routes that the attack can follow through a purifier; ``rounds``: the classifier has no exact gradient."""
    needs = one.attack.needs
    if needs == "latent":
        with about(f"attack {one.spec!r}"):
            latent_space_of(purifier)
        return ["bpda" if rounds else "exact"]
    if needs in QUERY_NEEDS:
        return ["none", "oblivious"]
    if rounds and not (requested is not None and "exact" in requested):
        return ["bpda", "oblivious"]
    if purifier.gradient == "exact" or (requested is not None and "exact" in requested):
        return ["exact", "bpda", "oblivious"]
    return ["bpda", "oblivious"]


def _order(job: Job) -> tuple[int, bool]:
    return get_args(Route).index(job.route), job.named.attack.needs in QUERY_NEEDS


def _sequence(job: Job) -> str:
    if job.model == "undefended":
        return "undefended"
    return "oblivious" if job.route == "oblivious" else "informed"


def _check_routes(routes: Sequence[str] | None) -> None:
    for route in routes or ():
        if route not in get_args(Route):
            raise ConfigError(f"route must be one of {', '.join(get_args(Route))}, got {route!r}")


def _no_threshold(one: NamedAttack, purifier: Purifier | None) -> ConfigError:
    needed = f"attack {one.spec!r} evades the threshold of a calibrated purifier, but"
    if purifier is None:
        return ConfigError(
            f"{needed} there is no purifier, and no exported guard that rejects images; use an attack on the "
            "classifier alone, such as square"
        )
    given = shlex.quote(str(purifier.provenance.get("spec", "PURIFIER")))
    return ConfigError(
        f"{needed} {type(purifier).__name__} is not calibrated; run `purifier calibrate {given} --data DATA --out "
        "calibrated.safetensors` (in Python purifier.calibrate) and audit that, or use square, or joint, which needs "
        "gradients but no threshold"
    )


def _check_norm(one: NamedAttack, threat: Threat) -> None:
    if threat.norm not in one.attack.norms:
        raise ConfigError(
            f"attack {one.spec!r} supports {', '.join(one.attack.norms)}, not {threat.norm}; "
            "choose another attack or norm"
        )
