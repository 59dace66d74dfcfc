"""Self-checks: tests of the model itself, which show whether the failure of an attack means anything."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacking.specs import read_attack
from ..attacking.target import Spent, Target, strongest_route
from ..attacking.threat import Threat
from ..data.images import ImageData
from ..errors import GradientError
from ..foreign_code import Attempt
from ..seeding import SampleGenerator, mix_seed
from ..vocabulary import Norm, Route
from .bounds_check import flags_of_bounds
from .comparing import count_flipped, exceeds_one_percent, significant_drop
from .crafting import craft
from .gradient_check import Precision, flags_of_gradient
from .judging import CLEAN, judge
from .jump_check import flags_of_jumps
from .likely_causes import flags_of_set_up
from .logits_check import SINGLE_IMAGES, flags_of_layers, flags_of_logits
from .paths import flags_of_paths
from .plan import Job
from .presets import PROBED
from .probing import probe
from .reach_check import flags_of_reach
from .report import Flag
from .setup import AsExact, AuditSetup, Batch
from .statistics import wilson

# The margin loss, because cross-entropy vanishes in float32 on a classifier that is merely very confident.
PGD = "pgd:steps=20,loss=margin"
JOINT = "joint:steps=20,loss=margin"
ONE_STEP = "pgd:steps=1,step_size=1,random_start=false,loss=margin"
NOISE_ATTACK = "noise"
COMPARED_IMAGES = 32
"""How many images paths and slopes are compared on: more would cost more than they show."""
NOT_A_FUNCTION = {"nondeterministic", "batch-dependent"}
"""Flags of guards whose answer is no function of the image, so that neither paths nor slopes can be compared."""


@dataclass(frozen=True)
class Attacked:
    """What the self-checks' own attack left right within one threat."""

    attack: str
    threat: Threat
    route: Route
    indices: Sequence[int]
    """The attacked images' positions in the data."""
    shares: Tensor
    """The share of judgements in which each is right, (n,) float64."""


@dataclass(frozen=True)
class SelfChecks:
    """The result of the self-checks."""

    flags: Sequence[Flag]
    attacked: Sequence[Attacked]
    """One for each threat; none if there are no gradients, or no image is right."""
    gradient_check: Precision | None = None
    """The precision in which gradients were compared with finite differences; None if they were not."""


def self_check(setup: AuditSetup, data: ImageData, threats: Sequence[Threat], *, count: int = PROBED) -> SelfChecks:
    """The flags that the guard itself raises, whatever attacks an audit runs; its modules are frozen.

    An error in a self-check raises a flag too, so that the results of the attacks are not lost.

    Parameters
    ----------
    setup
        The guard, or the classifier alone, and the audit's settings.
    data
        The model is shown the first ``count`` images, at least ``SINGLE_IMAGES``; the first ``count`` images that it
        has right are attacked.
    threats
        The audit's threats.
    """
    first = setup.batch(data, range(min(max(SINGLE_IMAGES, min(count, setup.batch_size)), len(data))))
    attacked: list[Attacked] = []
    precisions: list[Precision] = []
    flags = probe(
        lambda: flags_of_layers(setup),
        lambda: flags_of_logits(setup, first, threats),
        lambda: flags_of_set_up(setup, data),
    )
    if NOT_A_FUNCTION.isdisjoint(flag.name for flag in flags):
        compared = first.select(torch.arange(min(count, COMPARED_IMAGES, len(first.indices))))
        flags += probe(lambda: flags_of_paths(setup, compared, threats))
        if setup.classifier.differentiable and not setup.classifier.surrogates:
            flags += probe(
                lambda: flags_of_gradient(setup, compared, threats, precisions),
                lambda: flags_of_bounds(setup, compared),
                lambda: flags_of_jumps(setup, compared),
                lambda: flags_of_reach(setup, compared, threats),
            )
    if setup.classifier.differentiable:
        flags += probe(lambda: _flags_of_right_images(setup, data, threats, count, attacked))
    return SelfChecks(flags, attacked, precisions[0] if precisions else None)


def _flags_of_right_images(
    setup: AuditSetup, data: ImageData, threats: Sequence[Threat], count: int, attacked: list[Attacked]
) -> Iterator[Flag]:
    """Attack the first images that are right; what PGD leaves right is added to ``attacked``."""
    right = _right_images(setup, data, count)
    if right is None:
        return
    route = strongest_route(setup.classifier, setup.purifier)
    try:
        yield from _flags_of_gradients(setup, right, route, threats)
        plain = setup.accepting  # a rejection would hide what the gradients find
        for threat in threats:
            own = _shares(plain, right, _own_attack(setup, threat.norm), threat, route)
            left = own if plain is setup else _shares(setup, right, _own_attack(setup, threat.norm), threat, route)
            left = torch.minimum(left, _through_purify(setup, right, threat, left))
            attacked.append(Attacked(_own_attack(setup, threat.norm), threat, route, right.indices, left))
            yield from _flags_of_attacks(plain, right, route, threat, own)
        for norm in dict.fromkeys(threat.norm for threat in threats):
            yield from _flags_of_huge_budget(plain, right, route, norm)
    except GradientError as error:  # a detach cuts the gradient off
        yield Flag("zero-gradient", str(error))


def _through_purify(setup: AuditSetup, batch: Batch, threat: Threat, left: Tensor) -> Tensor:
    """What PGD leaves right, (N,), that differentiates a purifier which declares a surrogate all the same.

    Its gradient may be useful, and then the surrogate hides it. ``left`` if there is none.
    """
    if setup.purifier.gradient == "exact":
        return left
    with Attempt() as attempt:
        direct = dataclasses.replace(setup, purifier=AsExact(setup.purifier))
        found = _shares(direct, batch, PGD, threat, strongest_route(direct.classifier, direct.purifier))
    return left if attempt.error is not None else found


def _own_attack(setup: AuditSetup, norm: Norm) -> str:
    """The attack of the self-checks, which aims at every wrong answer that the model can give."""
    return JOINT if setup.rejection.answers and norm != "l1" else PGD


def _flags_of_gradients(setup: AuditSetup, batch: Batch, route: Route, threats: Sequence[Threat]) -> Iterator[Flag]:
    """Look at the clean images and far from them, in a random direction of each threat.

    Gradients may be correct at clean images only.
    """
    total, zero, not_finite, flat = len(batch.labels), 0, 0, 0
    for part in batch.split(setup.batch_size):
        pixels, labels = part.pixels, part.labels
        generator = SampleGenerator(mix_seed(setup.seed, "probe", "places"), part.indices)
        offsets = [threat.eps * generator.normal(pixels.shape[1:], pixels).sign() for threat in threats]
        moved = [threat.project(pixels + offset, pixels) for threat, offset in zip(threats, offsets, strict=True)]
        target = Target(setup.classifier, setup.purifier, route, generator, eot=setup.eot)
        loss = functools.partial(_margin, labels=labels)
        gradients = torch.stack([target.gradient(images, loss)[0] for images in (pixels, *moved)]).flatten(2)
        if setup.rejection.active:
            (of_score,), _, _ = target.gradients_with_score(moved[0], lambda _, score: score)
            flat += int((of_score.flatten(1) == 0).all(1).sum())
        zero += int((gradients == 0).all(2).any(0).sum())
        not_finite += int((~gradients.isfinite()).any(2).any(0).sum())
    if not_finite:
        yield Flag("nan-gradient", f"the gradient of {not_finite} of {total} images has NaN or infinity ({route})")
    if exceeds_one_percent(zero, total):
        yield Flag("zero-gradient", f"the gradient of {zero} of {total} images is zero everywhere ({route})")
    if exceeds_one_percent(flat, total):
        yield Flag(
            "zero-gradient", f"the gradient of the score of {flat} of {total} images is zero everywhere ({route})"
        )


def _flags_of_attacks(setup: AuditSetup, batch: Batch, route: Route, threat: Threat, left: Tensor) -> Iterator[Flag]:
    """Compare what the self-checks' own attack leaves right, (N,), with other attacks."""
    attack = _own_attack(setup, threat.norm)
    one_step = _shares(setup, batch, ONE_STEP, threat, route)
    total, fooled = len(left), f"{_count_fooled(left)} of {len(left)} images at {threat} ({route})"
    if significant_drop(left, one_step) is not None:
        yield Flag("one-step-wins", f"one step fools {_count_fooled(one_step)}, {attack} {fooled}")
    # Noise can only win images that it leaves right; a larger budget can only lose images that it fools.
    left_right = (left == 1).nonzero().squeeze(1)
    caught = count_flipped(left[left_right], _shares(setup, batch.select(left_right), NOISE_ATTACK, threat, "none"))
    if exceeds_one_percent(caught, total):
        yield Flag("noise-wins", f"{attack} fools {fooled}, {NOISE_ATTACK} fools {caught} others")
    double = Threat(threat.norm, min(2 * threat.eps, 1) if threat.norm == "linf" else 2 * threat.eps)
    wrong = (left < 1).nonzero().squeeze(1)
    if exceeds_one_percent(_shares(setup, batch.select(wrong), attack, double, route).sum().item(), total):
        doubled = _shares(setup, batch, attack, double, route)
        if significant_drop(doubled, left) is not None:
            yield Flag("no-rise", f"{attack} fools {fooled}, but {_count_fooled(doubled)} at {double}")


def _flags_of_huge_budget(setup: AuditSetup, batch: Batch, route: Route, norm: Norm) -> Iterator[Flag]:
    """Try a budget within which every image can turn into the same grey one."""
    size = batch.pixels[0].numel()
    huge = Threat(norm, {"linf": 0.5, "l2": 0.5 * size**0.5, "l1": 0.5 * size}[norm])
    attack = _own_attack(setup, norm)
    shares = _shares(setup, batch, attack, huge, route)
    with torch.no_grad():
        classes = setup.classifier(batch.pixels[:1]).shape[1]
    left, total = shares.sum().item(), len(shares)
    _, most = wilson(total / classes, total)
    if left > most * total:
        yield Flag(
            "unbounded", f"{attack} at {huge} ({route}) leaves {left:g} of {total} images right, chance {most:.1%}"
        )


def _shares(setup: AuditSetup, batch: Batch, spec: str, threat: Threat, route: Route) -> Tensor:
    """The share of judgements in which each image is right under an attack, (N,)."""
    if not len(batch.labels):
        return torch.zeros(0, dtype=torch.float64)
    job = Job(read_attack(spec), threat, route)
    shares = []
    for part in batch.split(setup.batch_size):
        found = dataclasses.replace(part, pixels=craft(setup, job, part, Spent()))
        shares.append(judge(setup, setup.model, found, str(job)).shares)
    return torch.cat(shares)


def _count_fooled(shares: Tensor) -> str:
    return f"{len(shares) - shares.sum().item():g}"


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The best wrong logit minus the right one (Carlini & Wagner 2017, f6 with the sign reversed), (N,)."""
    right = labels.unsqueeze(1)
    others = logits.float().scatter(1, right, -torch.inf)
    return others.amax(1) - logits.float().gather(1, right).squeeze(1)


def _right_images(setup: AuditSetup, data: ImageData, count: int) -> Batch | None:
    """The first ``count`` images that are right in most judgements; None if there are none."""
    chosen: list[int] = []
    size = min(count, setup.batch_size)
    for start in range(0, len(data), size):
        indices = range(start, min(start + size, len(data)))
        shares = judge(setup, setup.model, setup.batch(data, indices), CLEAN).shares
        chosen += [indices[place] for place in (shares > 0.5).nonzero().squeeze(1).tolist()]
        if len(chosen) >= count:
            break
    return setup.batch(data, chosen[:count]) if chosen else None
