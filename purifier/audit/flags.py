"""Flags: signs that an audit's figures are too high to be believed. Their catalogue, and those that figures show."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ..target import Route
from ..threat import Threat
from .report import WHITE_BOX, Flag
from .tally import Tally

ENOUGH = 5
"""Judgements of a random guard from which on being right or wrong in all of them is hardly luck."""
EFFORT = ("steps", "restarts")
"""Options that only make an attack try longer."""
Z99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True)
class FlagKind:
    """What a flag means: for the report, the command line and the documentation alike."""

    name: str
    raised_if: str
    why: str
    what_to_do: str


FLAGS: dict[str, FlagKind] = {
    kind.name: kind
    for kind in (
        FlagKind(
            "probe-failed",
            "what is tried on the guard itself breaks down",
            "The signs below were not looked for, in which masked gradients show (Athalye et al. 2018, section 3.1).",
            "mend what the evidence names; the figures of attacks that ran stand, but say less",
        ),
        FlagKind(
            "zero-gradient",
            "the gradient of the margin loss is exactly zero all over the image for more than 1% of images, or cut off",
            "Gradient attacks stand still where there is no gradient (Athalye et al. 2018, section 3: shattered and "
            "vanishing gradients); what they leave right is no robustness.",
            "declare gradient = 'surrogate' and write a surrogate that follows the purifier, for the route bpda",
        ),
        FlagKind(
            "nan-gradient",
            "the gradient of the margin loss has NaN or infinity for any image",
            "A gradient that is no number leads no attack anywhere (Athalye et al. 2018, section 3: numerical "
            "instability shatters gradients).",
            "find the operation that has no derivative there (sqrt, log or a norm at 0) and keep it away from the edge",
        ),
        FlagKind(
            "probabilities",
            "the classifier's outputs are not negative and sum to 1 for every image: a softmax is fed as logits",
            "A softmax is flat in float32 where it is sure, and losses made for logits vanish on it (Carlini et al. "
            "2019, on numerically stable losses; Croce & Hein 2020, section 4).",
            "give the classifier without its softmax",
        ),
        FlagKind(
            "nondeterministic",
            "the same pixels and declared noise give other logits, beyond rounding, for more than 1% of images",
            "Randomness nobody declared is not averaged over, so gradients are those of another model than the one "
            "judged (Athalye et al. 2018, section 3: stochastic gradients).",
            "move all randomness into the purifier's draw(), and switch dropout and the like off in the classifier",
        ),
        FlagKind(
            "random-without-eot",
            "the purifier draws noise and gradients are those of one draw (eot=1)",
            "One draw's gradient is mostly noise; an attack has to average over draws (Athalye et al. 2018, section "
            "4.2: expectation over transformation).",
            "audit with eot=10 or more, until more draws change nothing",
        ),
        FlagKind(
            "batch-norm",
            "a BatchNorm layer uses the batch's statistics: it stays in training mode or has no running statistics",
            "An image is then judged by the company it is in, which an attack crafted in another batch does not know "
            "(Tramer et al. 2020: attack the model as it will run).",
            "put the layer into evaluation mode with running statistics from training",
        ),
        FlagKind(
            "batch-dependent",
            "an image's logits alone, or in another order of the batch, are not those in the batch, beyond rounding",
            "A figure that depends on which images are tried together is no property of the guard (Tramer et al. "
            "2020: attack the model as it will run).",
            "treat each image for itself: no means, sorting or mixing over the first dimension",
        ),
        FlagKind(
            "unbounded",
            "with a budget that reaches a grey image PGD leaves more images right than chance and its margin of error",
            "An attack that may change everything must always win (Athalye et al. 2018, section 3.1; Carlini et al. "
            "2019, on accuracy against the budget); one that does not is lost.",
            "mend the gradient first (see the other flags), then give the attack more steps and restarts",
        ),
        FlagKind(
            "one-step-wins",
            "one gradient step of length eps fools more images than 20 of PGD, beyond luck (McNemar's test at 1%)",
            "Iterating can only help where gradients are of use (Athalye et al. 2018, section 3.1; Carlini et al. "
            "2019, on iterative attacks).",
            "look for gradients that are right at clean images only; attack through a surrogate, with more restarts",
        ),
        FlagKind(
            "noise-wins",
            "random noise within the budget fools more than 1% of images that PGD does not",
            "An attack that follows gradients must find what blind search finds (Athalye et al. 2018, section 3.1).",
            "do not trust the gradient: write a better surrogate, and add query attacks",
        ),
        FlagKind(
            "no-rise",
            "with twice the budget PGD fools fewer images, beyond luck (McNemar's test at 1%)",
            "The larger budget holds the smaller one, so an attack that does worse there is lost (Athalye et al. 2018, "
            "section 3.1; Carlini et al. 2019, on accuracy against the budget).",
            "look for gradients that vanish away from clean images; attack with more steps and restarts",
        ),
        FlagKind(
            "black-box-wins",
            "attacks by queries fool more than 1% of images that no white-box gradient attack fools",
            "Who sees gradients sees more than who asks for outputs; otherwise they mislead (Athalye et al. 2018, "
            "section 3.1; Carlini et al. 2019, on gradient-free attacks).",
            "write a better surrogate or attack with more steps, restarts and losses, until the white-box attack leads",
        ),
        FlagKind(
            "transfer-wins",
            "images made for the classifier alone fool the guard for more than 1% of images that no white-box gradient "
            "attack fools",
            "Who knows the purifier must do better than who does not (Carlini et al. 2019, on transfer attacks; Tramer "
            "et al. 2020).",
            "write a better surrogate or attack with more steps, restarts and losses, until the white-box attack leads",
        ),
        FlagKind(
            "not-monotone",
            "the worst case at a larger budget is better than at a smaller one by more than 1% of images, beyond luck",
            "The larger budget holds the smaller one (Athalye et al. 2018, section 3.1; Carlini et al. 2019, on "
            "accuracy against the budget).",
            "take the lower figure for both, and attack with more steps and restarts",
        ),
        FlagKind(
            "not-converged",
            "the same attack with more steps or restarts fools more than 1% more images, beyond luck",
            "Where more work still finds more, the figure tells of the attacker's patience (Carlini et al. 2019, on "
            "attacks that have converged; Tramer et al. 2020).",
            "double steps and restarts until nothing changes",
        ),
        FlagKind(
            "eot-not-flat",
            "averaged over more draws the same attack still fools more than 1% more images, beyond luck",
            "The gradients were still noisy at fewer draws, and may be at the most (Athalye et al. 2018, section 4.2; "
            "Tramer et al. 2020, on randomised defences).",
            "raise eot until the accuracy is flat, and quote that figure",
        ),
    )
}


def beyond(count: float, of: int) -> bool:
    """Whether ``count`` of so many images is more than one and more than 1%, the finest that is claimed; or all."""
    return count > max(1.0, of / 100) or (of > 0 and count == of)


def only(standing: Tensor, fallen: Tensor) -> int:
    """How many images are right in every judgement of ``standing`` and wrong in every one of ``fallen``; shares (N,).

    For a random guard that is next to never luck: with p right in both, p^5 (1 - p)^5 < 1/1000 at five judgements.
    """
    return int(((standing == 1) & (fallen == 0)).sum())


def fewer(left: Tensor, right: Tensor) -> float | None:
    """How many images fewer are right in ``right`` than in ``left``, shares (N,) of the same images; None if not many.

    Not many is what :func:`beyond` lets pass, and what luck explains: McNemar's test (1947), one-sided at 1%, of the
    images that differ, with shares in the place of counts. Both attacks being as good, each falls either way alike.
    """
    differences = left - right
    total, spread = differences.sum().item(), differences.square().sum().sqrt().item()
    return total if beyond(total, len(left)) and total > Z99 * spread else None


def compare(rows: Sequence[Tally], strongest: Route, *, decisive: bool = True) -> list[Flag]:
    """The flags that finished figures raise when held against each other; rows that errored are left out.

    ``decisive`` says that right or wrong in all judgements is next to never luck: see :func:`only`.

    ``strongest`` is the route that sees most of the purifier: where no gradient attack went along it, nothing is
    white-box, and nothing can be said to beat the white-box attack.
    """
    flags = []
    for clean in (row for row in rows if row.job is None):
        model = clean.model
        attacked = [row for row in rows if row.job is not None and row.model == model and not row.error]
        for threat in dict.fromkeys(row.threat for row in attacked):
            of_threat = [row for row in attacked if row.threat == threat]
            needed = "exact" if model == "undefended" else strongest
            blind = _blind_wins(clean, of_threat, needed) if decisive else ()
            found = [*blind, *_more_wins(clean, of_threat)]
            flags += [Flag(name, f"{threat}, {model}: {evidence}") for name, evidence in found]
        flags += [Flag("not-monotone", f"{model}: {evidence}") for evidence in _risen(clean, attacked)]
    return flags


def _blind_wins(clean: Tally, rows: Sequence[Tally], needed: Route) -> Iterator[tuple[str, str]]:
    """What queries and transfer find beyond the white-box attacks of one model and threat."""
    if needed not in (row.route for row in rows):
        return
    white = _worst(clean, [row for row in rows if row.route in WHITE_BOX])
    of_none = [row for row in rows if row.route == "none"]
    # One that differentiates the classifier alone is no black-box attack, whoever judges.
    transferred = [row for row in rows if row.route == "oblivious" or (row.route == "none" and row.differentiates)]
    for name, candidates in (
        ("black-box-wins", [row for row in of_none if not row.differentiates]),
        ("transfer-wins", transferred),
    ):
        blind = [row for row in candidates if only(white, row.own_shares)]
        count = only(white, torch.stack([clean.shares, *(row.own_shares for row in blind)]).amin(0))
        if beyond(count, len(white)):
            who = ", ".join(dict.fromkeys(row.job.named.spec for row in blind if row.job is not None))
            yield (
                name,
                f"{count} of {len(white)} images are fooled by {who} and by no white-box gradient attack",
            )


def _more_wins(clean: Tally, rows: Sequence[Tally]) -> Iterator[tuple[str, str]]:
    """What the most steps and restarts, or draws, of an attack find beyond the next fewer."""
    white = [(row, row.job) for row in rows if row.route in WHITE_BOX and row.job is not None]
    longer: dict[Hashable, list[tuple[tuple[int, ...], Tally]]] = {}
    draws: dict[Hashable, list[tuple[tuple[int, ...], Tally]]] = {}
    for row, job in white:
        options = job.named.options
        given = [name for name in EFFORT if isinstance(options.get(name), int)]
        effort = tuple(int(options.pop(name)) for name in given)
        kind = type(job.named.attack), *given, repr(sorted(options.items()))
        longer.setdefault((kind, row.route, job.eot), []).append((effort, row))
        if job.eot is not None:
            draws.setdefault((job.named.spec, row.route), []).append(((job.eot,), row))
    for name, groups in (("not-converged", longer), ("eot-not-flat", draws)):
        for members in groups.values():
            members.sort(key=lambda member: member[0])
            for (less, weak), (more, strong) in itertools.pairwise(members[-2:]):
                left, right = (torch.minimum(clean.shares, row.shares) for row in (weak, strong))
                count = fewer(left, right)
                if count is not None and all(low <= high for low, high in zip(less, more, strict=True)):
                    yield name, f"{strong.job} leaves {count:g} of {len(left)} images fewer right than {weak.job}"


def _risen(clean: Tally, rows: Sequence[Tally]) -> Iterator[str]:
    """The budgets at which more images are right in the worst case than at the next smaller one."""
    kinds: dict[Threat, dict[Hashable, Tally]] = {}
    for row in rows:
        if row.job is not None:
            kinds.setdefault(row.job.threat, {})[row.job.named.spec, row.route, row.job.eot] = row
    for small, large in itertools.pairwise(sorted(kinds, key=lambda threat: (threat.norm, threat.eps))):
        shared = kinds[small].keys() & kinds[large].keys()  # an attack that errored at one is left out at both
        if small.norm == large.norm and shared:
            less, more = (_worst(clean, [kinds[threat][kind] for kind in shared]) for threat in (small, large))
            count = fewer(more, less)
            if count is not None:
                yield f"{count:g} of {len(less)} images more are right at {large} than at {small}"


def _worst(clean: Tally, rows: Sequence[Tally]) -> Tensor:
    return torch.stack([clean.shares, *(row.shares for row in rows)]).amin(0)
