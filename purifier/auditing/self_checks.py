"""Self-checks: what is tried on the guard itself, to see whether the failure of an attack says anything."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..answering import answer, draw
from ..attacking.specs import read_attack
from ..attacking.target import Spent, Target
from ..attacking.threat import Threat
from ..classifiers.logits import are_probabilities
from ..data.images import ImageData
from ..errors import GradientError
from ..foreign_code import Attempt, cause_of
from ..seeding import SampleGenerator, mix_seed
from ..vocabulary import Norm, Route
from .comparing import beyond, fewer, only
from .crafting import craft
from .judging import judge
from .plan import Job
from .presets import PROBED
from .report import Flag
from .setup import AuditSetup, Batch
from .statistics import wilson

# The margin loss, because cross-entropy vanishes in float32 on a classifier that is merely very sure.
PGD = "pgd:steps=20,loss=margin"
ONE_STEP = "pgd:steps=1,step_size=1,random_start=false,loss=margin"
NOISE_ATTACK = "noise"
LOGIT_ROUNDING = 1e-2
"""The share of an image's range of logits that sums in another order, TF32 ones too, stay well below."""
ALONE = 8
"""How many images are also shown one at a time."""


def self_check(setup: AuditSetup, data: ImageData, threats: Sequence[Threat], *, count: int = PROBED) -> list[Flag]:
    """The flags that a guard raises by itself, whatever attacks an audit runs. Its modules are at rest.

    A breakdown is a flag too: attacks that ran are not lost for it.

    Parameters
    ----------
    setup
        Crafts and judges.
    data
        The first ``count`` images, at least ``ALONE``, are shown to the guard; the first ``count`` it has right are
        attacked.
    threats
        The audit's budgets.
    """
    found: list[Flag] = []
    with Attempt() as attempt:
        found += _of_guard(setup, data, threats, count)
    if attempt.error is not None:
        found.append(Flag("probe-failed", cause_of(attempt.error)))
    return found


def _of_guard(setup: AuditSetup, data: ImageData, threats: Sequence[Threat], count: int) -> list[Flag]:
    first = range(min(max(ALONE, min(count, setup.batch_size)), len(data)))
    flags = [*_of_layers(setup), *_of_logits(setup, setup.batch(data, first))]
    right = _right(setup, data, count) if setup.classifier.differentiable else None
    if right is None:
        return flags
    route: Route = "exact" if setup.purifier.gradient == "exact" else "bpda"
    try:
        flags += _of_gradients(setup, right, route, threats)
        for threat in threats:
            flags += _of_attacks(setup, right, route, threat)
        for norm in dict.fromkeys(threat.norm for threat in threats):
            flags += _of_all_budgets(setup, right, route, norm)
    except GradientError as error:  # cut off by a detach
        flags.append(Flag("zero-gradient", str(error)))
    return flags


def _of_layers(setup: AuditSetup) -> Iterator[Flag]:
    for whole in (setup.classifier, setup.purifier):
        for name, layer in whole.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                where = f"{type(whole).__name__}: {name} ({type(layer).__name__})"
                if layer.running_mean is None:
                    yield Flag("batch-norm", f"{where} has no running statistics")
                elif layer.training:
                    yield Flag("batch-norm", f"{where} is in training mode")


@torch.no_grad()
def _of_logits(setup: AuditSetup, batch: Batch) -> Iterator[Flag]:
    pixels, total = batch.pixels, len(batch.labels)
    noise = draw(setup.purifier, pixels, SampleGenerator(mix_seed(setup.seed, "probe"), batch.indices))
    if noise is not None and setup.eot == 1:
        yield Flag("random-without-eot", "the purifier draws noise, and gradients are those of 1 draw")

    def logits(at: Tensor) -> Tensor:
        given = answer(setup.purifier, setup.classifier, pixels[at], None if noise is None else noise[at])
        found: Tensor = given.output.float()
        return found

    def changed(at: Tensor, found: Tensor) -> int:
        """How many images' logits differ from those in the batch by more than rounding."""
        reach = torch.maximum(given[at].amax(1) - given[at].amin(1), LOGIT_ROUNDING * given[at].abs().amax(1))
        return int(((found - given[at]).abs().amax(1) > LOGIT_ROUNDING * reach).sum())

    everyone = torch.arange(total, device=pixels.device)
    given = logits(everyone)
    if are_probabilities(given):
        low, high = given.sum(1).aminmax()
        yield Flag(
            "probabilities", f"all outputs of {total} images are in [0, 1], their sums in [{low:.4f}, {high:.4f}]"
        )
    again = changed(everyone, logits(everyone))
    if beyond(again, total):
        # What differs from itself differs from its batch too: that would say nothing more.
        yield Flag("nondeterministic", f"the logits of {again} of {total} images differ when asked twice")
        return
    turned, alone = everyone.flip(0), torch.split(everyone[:ALONE], 1)
    mixed, lonely = changed(turned, logits(turned)), sum(changed(at, logits(at)) for at in alone)
    if beyond(mixed, total) or beyond(lonely, len(alone)):
        yield Flag(
            "batch-dependent",
            f"the logits of {mixed} of {total} images differ in the batch reversed, of {lonely} of {len(alone)} alone",
        )


def _of_gradients(setup: AuditSetup, batch: Batch, route: Route, threats: Sequence[Threat]) -> Iterator[Flag]:
    """At the images, and far out in a random direction of each threat: gradients may be right at clean images alone."""
    total, nothing, broken = len(batch.labels), 0, 0
    for part in batch.split(setup.batch_size):
        pixels, labels = part.pixels, part.labels
        generator = SampleGenerator(mix_seed(setup.seed, "probe", "places"), part.indices)
        offsets = [threat.eps * generator.normal(pixels.shape[1:], pixels).sign() for threat in threats]
        places = [threat.project(pixels + offset, pixels) for threat, offset in zip(threats, offsets, strict=True)]
        target = Target(setup.classifier, setup.purifier, route, generator, eot=setup.eot)
        loss = functools.partial(_margin, labels=labels)
        gradients = torch.stack([target.gradient(place, loss)[0] for place in (pixels, *places)]).flatten(2)
        nothing += int((gradients == 0).all(2).any(0).sum())
        broken += int((~gradients.isfinite()).any(2).any(0).sum())
    if broken:
        yield Flag("nan-gradient", f"{broken} of {total} images have NaN or infinity in it ({route})")
    if beyond(nothing, total):
        yield Flag("zero-gradient", f"{nothing} of {total} images have no other number in it ({route})")


def _of_attacks(setup: AuditSetup, batch: Batch, route: Route, threat: Threat) -> Iterator[Flag]:
    pgd, one_step = (_shares(setup, batch, spec, threat, route) for spec in (PGD, ONE_STEP))
    total, fooled = len(pgd), f"{_fooled(pgd)} of {len(pgd)} images at {threat} ({route})"
    if fewer(pgd, one_step) is not None:
        yield Flag("one-step-wins", f"one step fools {_fooled(one_step)}, {PGD} {fooled}")
    # Only the images that PGD leaves right can be won by noise; a larger budget can lose only those that it fools.
    standing = (pgd == 1).nonzero().squeeze(1)
    caught = only(pgd[standing], _shares(setup, batch.select(standing), NOISE_ATTACK, threat, "none"))
    if beyond(caught, total):
        yield Flag("noise-wins", f"{NOISE_ATTACK} fools {caught} that {PGD} does not, which fools {fooled}")
    double = Threat(threat.norm, min(2 * threat.eps, 1) if threat.norm == "linf" else 2 * threat.eps)
    fallen = (pgd < 1).nonzero().squeeze(1)
    if beyond(_shares(setup, batch.select(fallen), PGD, double, route).sum().item(), total):
        doubled = _shares(setup, batch, PGD, double, route)
        if fewer(doubled, pgd) is not None:
            yield Flag("no-rise", f"{PGD} fools {fooled} and {_fooled(doubled)} at {double}")


def _of_all_budgets(setup: AuditSetup, batch: Batch, route: Route, norm: Norm) -> Iterator[Flag]:
    """Try a budget within which any image can become a grey one, like every other."""
    size = batch.pixels[0].numel()
    huge = Threat(norm, {"linf": 0.5, "l2": 0.5 * size**0.5, "l1": 0.5 * size}[norm])
    shares = _shares(setup, batch, PGD, huge, route)
    with torch.no_grad():
        classes = setup.classifier(batch.pixels[:1]).shape[1]
    left, total = shares.sum().item(), len(shares)
    _, most = wilson(total / classes, total)
    if left > most * total:
        yield Flag("unbounded", f"{PGD} at {huge} ({route}) leaves {left:g} of {total} images right, chance {most:.1%}")


def _shares(setup: AuditSetup, batch: Batch, spec: str, threat: Threat, route: Route) -> Tensor:
    """The share of judgements in which each image is right under an attack, (N,)."""
    if not len(batch.labels):
        return torch.zeros(0, dtype=torch.float64)
    job = Job(read_attack(spec), threat, route)
    shares = []
    for part in batch.split(setup.batch_size):
        found = dataclasses.replace(part, pixels=craft(setup, job, part, Spent()))
        shares.append(judge(setup, "guarded", found, str(job)).shares)
    return torch.cat(shares)


def _fooled(shares: Tensor) -> str:
    return f"{len(shares) - shares.sum().item():g}"


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the right one (Carlini & Wagner 2017, f6, sign turned), (N,)."""
    right = labels.unsqueeze(1)
    others = logits.float().scatter(1, right, -torch.inf)
    return others.amax(1) - logits.float().gather(1, right).squeeze(1)


def _right(setup: AuditSetup, data: ImageData, count: int) -> Batch | None:
    """The first ``count`` images that the guard has right in most judgements; None if there are none."""
    chosen: list[int] = []
    size = min(count, setup.batch_size)
    for start in range(0, len(data), size):
        indices = range(start, min(start + size, len(data)))
        shares = judge(setup, "guarded", setup.batch(data, indices), "none").shares
        chosen += [indices[place] for place in (shares > 0.5).nonzero().squeeze(1).tolist()]
        if len(chosen) >= count:
            break
    return setup.batch(data, chosen[:count]) if chosen else None
