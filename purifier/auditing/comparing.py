"""The flags that finished figures raise when compared with each other."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from ..attacking.threat import Threat
from ..vocabulary import Route
from .counting import PendingRow
from .report import WHITE_BOX, Flag

DECISIVE_JUDGEMENTS = 5
"""Judgements of a random guard from which on being right or wrong in all of them is hardly luck."""
EFFORT = ("steps", "restarts")
"""Options that only make an attack try longer."""
Z99 = NormalDist().inv_cdf(0.99)


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


def compare(rows: Sequence[PendingRow], strongest: Route, *, decisive: bool = True) -> list[Flag]:
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


def _blind_wins(clean: PendingRow, rows: Sequence[PendingRow], needed: Route) -> Iterator[tuple[str, str]]:
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


def _more_wins(clean: PendingRow, rows: Sequence[PendingRow]) -> Iterator[tuple[str, str]]:
    """What the most steps and restarts, or draws, of an attack find beyond the next fewer."""
    white = [(row, row.job) for row in rows if row.route in WHITE_BOX and row.job is not None]
    longer: dict[Hashable, list[tuple[tuple[int, ...], PendingRow]]] = {}
    draws: dict[Hashable, list[tuple[tuple[int, ...], PendingRow]]] = {}
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


def _risen(clean: PendingRow, rows: Sequence[PendingRow]) -> Iterator[str]:
    """The budgets at which more images are right in the worst case than at the next smaller one."""
    kinds: dict[Threat, dict[Hashable, PendingRow]] = {}
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


def _worst(clean: PendingRow, rows: Sequence[PendingRow]) -> Tensor:
    return torch.stack([clean.shares, *(row.shares for row in rows)]).amin(0)
