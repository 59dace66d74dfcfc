"""Flags that show when the results of different attacks are compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from ..attacking.threat import Threat
from ..vocabulary import Route
from .counting import PendingRow, white_box_rows
from .report import WHITE_BOX, Flag, Model

DECISIVE_JUDGEMENTS = 5
"""With this many judgements of a random guard, being right in all or wrong in all of them is hardly chance."""
EFFORT = ("steps", "restarts")
"""Options that only increase the effort of an attack."""
Z95, Z99 = NormalDist().inv_cdf(0.95), NormalDist().inv_cdf(0.99)


def exceeds_one_percent(count: float, total: int) -> bool:
    """Whether ``count`` of ``total`` images is more than one image and more than 1% of them, or all of them."""
    return count > max(1.0, total / 100) or (total > 0 and count == total)


def count_flipped(right: Tensor, wrong: Tensor) -> int:
    """How many images are right in every judgement of ``right`` and wrong in every one of ``wrong``; shares (N,).

    For a random guard this is almost never chance: if both are right with probability p, it happens with probability
    p^5 (1 - p)^5 < 1/1000 at five judgements.
    """
    return int(((right == 1) & (wrong == 0)).sum())


def significant_drop(before: Tensor, after: Tensor) -> float | None:
    """How many fewer images are right in ``after`` than in ``before``, shares (N,) of the same images.

    None if the drop fails ``exceeds_one_percent``, or if chance explains it: McNemar's test (1947), one-sided at
    1%, on the images that differ, with shares instead of counts. Under its null hypothesis each of those images is
    equally likely to differ in either direction.
    """
    differences = before - after
    total, spread = differences.sum().item(), differences.square().sum().sqrt().item()
    return total if exceeds_one_percent(total, len(before)) and total > Z99 * spread else None


def by_chance(labels: Tensor) -> tuple[float, float]:
    """The accuracy of always answering the most frequent label, and the most that it is by chance (one-sided at 5%).

    ``labels`` (N,) are those of a sample, so the second number has a margin of error: it is what a model has to beat.
    """
    share = labels.bincount().max().item() / len(labels)
    return share, share + Z95 * math.sqrt(share * (1 - share) / len(labels))


def compare(rows: Sequence[PendingRow], strongest: Mapping[Model, Route], *, decisive: bool = True) -> list[Flag]:
    """Compare the rows with each other and return the flags raised; rows with errors are left out.

    ``decisive`` says that being right in all judgements or wrong in all of them is almost never chance: see
    ``count_flipped``.

    ``strongest`` is the route that sees most of each model. Without a gradient attack along it there is no white-box
    result that another attack could beat.
    """
    flags = []
    for clean in (row for row in rows if row.job is None):
        model = clean.model
        attacked = [row for row in rows if row.job is not None and row.model == model and not row.error]
        for threat in dict.fromkeys(row.threat for row in attacked):
            of_threat = [row for row in attacked if row.threat == threat]
            black_box = _black_box_wins(clean, of_threat, strongest[model]) if decisive else ()
            found = [*black_box, *_more_effort_wins(clean, of_threat)]
            flags += [Flag(name, f"{threat}, {model}: {evidence}") for name, evidence in found]
        flags += [Flag("not-monotone", f"{model}: {evidence}") for evidence in _not_monotone(clean, attacked)]
    return flags


def _black_box_wins(clean: PendingRow, rows: Sequence[PendingRow], needed: Route) -> Iterator[tuple[str, str]]:
    """What query and transfer attacks find that the white-box attacks on one model within one threat do not."""
    if needed not in (row.route for row in rows):
        return
    white_box = _worst(clean, white_box_rows(rows))
    of_none = [row for row in rows if row.route == "none"]
    # An attack that differentiates the classifier alone is not a black-box attack, whichever model it is judged on.
    transferred = [row for row in rows if row.route == "oblivious" or (row.route == "none" and row.differentiates)]
    for name, candidates in (
        ("black-box-wins", [row for row in of_none if not row.differentiates]),
        ("transfer-wins", transferred),
    ):
        winners = [row for row in candidates if count_flipped(white_box, row.own_shares)]
        count = count_flipped(white_box, torch.stack([clean.shares, *(row.own_shares for row in winners)]).amin(0))
        if exceeds_one_percent(count, len(white_box)):
            attacks = ", ".join(dict.fromkeys(row.job.named.spec for row in winners if row.job is not None))
            yield (
                name,
                f"{count} of {len(white_box)} images are fooled by {attacks} and by no white-box gradient attack",
            )


def _more_effort_wins(clean: PendingRow, rows: Sequence[PendingRow]) -> Iterator[tuple[str, str]]:
    """What an attack finds with the most steps and restarts, or draws, that it does not find with the next fewer."""
    white_box = [(row, row.job) for row in rows if row.route in WHITE_BOX and row.job is not None]
    longer: dict[Hashable, list[tuple[tuple[int, ...], PendingRow]]] = {}
    draws: dict[Hashable, list[tuple[tuple[int, ...], PendingRow]]] = {}
    for row, job in white_box:
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
                before, after = (torch.minimum(clean.shares, row.shares) for row in (weak, strong))
                count = significant_drop(before, after)
                if count is not None and all(low <= high for low, high in zip(less, more, strict=True)):
                    yield name, f"{strong.job} leaves {count:g} fewer of {len(before)} images right than {weak.job}"


def _not_monotone(clean: PendingRow, rows: Sequence[PendingRow]) -> Iterator[str]:
    """Budgets at which more images are right in the worst case than at the next smaller budget."""
    kinds: dict[Threat, dict[Hashable, PendingRow]] = {}
    for row in rows:
        if row.job is not None:
            kinds.setdefault(row.job.threat, {})[row.job.named.spec, row.route, row.job.eot] = row
    for small, large in itertools.pairwise(sorted(kinds, key=lambda threat: (threat.norm, threat.eps))):
        shared = kinds[small].keys() & kinds[large].keys()  # an attack that failed at one is left out at both
        if small.norm == large.norm and shared:
            less, more = (_worst(clean, [kinds[threat][kind] for kind in shared]) for threat in (small, large))
            count = significant_drop(more, less)
            if count is not None:
                yield f"{count:g} more of {len(less)} images are right at {large} than at {small}"


def _worst(clean: PendingRow, rows: Sequence[PendingRow]) -> Tensor:
    return torch.stack([clean.shares, *(row.shares for row in rows)]).amin(0)
