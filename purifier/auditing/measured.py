"""Flags of an audit as a whole: it measured nothing, or less than its own self-checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .comparing import by_chance, exceeds_one_percent, significant_drop
from .counting import PendingRow, white_box_rows
from .identity import Identity
from .report import Flag, Model, WorstCase
from .self_checks import Attacked

LEAST_QUERIES = 100
"""Fewer questions about an image are a search for nothing: the baseline ``noise`` asks 20."""


def flags_of_results(rows: Sequence[PendingRow], labels: Tensor, about: Identity) -> Iterator[Flag]:
    """The flags of an audit's rows as a whole; ``labels`` (N,)."""
    model = about.model
    for clean in (row for row in rows if row.job is None):
        yield from _at_chance(clean, labels)
    clean = next(row for row in rows if row.job is None and row.model == model)
    attacked = [row for row in rows if row.job is not None and row.model == model]
    finished = [row for row in attacked if not row.error]
    if attacked and not finished:
        failed = "the only attack" if len(attacked) == 1 else f"all {len(attacked)} attacks"
        yield Flag("nothing-attacked", f"{model}: {failed} failed")
    elif attacked and not clean.shares.any():
        yield Flag("nothing-attacked", f"{model}: none of {len(clean.shares)} clean images is right")
    if about.marks and attacked and not any(row.evades and row.route != "oblivious" for row in finished):
        specs = ", ".join(dict.fromkeys(row.job.named.spec for row in attacked if row.job is not None))
        yield Flag("detector-ignored", f"{model}: no attack that finished asked for scores ({specs})")


def _at_chance(clean: PendingRow, labels: Tensor) -> Iterator[Flag]:
    """Compare a model's clean accuracy with always answering the most frequent label, one-sided at 5%."""
    total, accuracy = len(clean.shares), clean.shares.mean().item()
    chance, least = by_chance(labels)
    if accuracy <= least:
        yield Flag(
            "at-chance",
            f"{clean.model}: {accuracy:.1%} of {total} clean images are right; always answering "
            f"{int(labels.mode().values)} gets {chance:.1%}",
        )


def weak_attacks(rows: Sequence[PendingRow], cases: Sequence[WorstCase], about: Identity) -> Iterator[Flag]:
    """Threats within which no attack aims at the audited model with more than a step, and images are left right.

    A gate is undecided for the same reason; ``cases`` are the worst cases of the rows.
    """
    model = about.model
    multi_step = {case.threat: case.multi_step for case in cases if (case.model, case.scope) == (model, "white-box")}
    for case in cases:
        if (case.model, case.scope) != (model, "all") or case.result.correct == 0:
            continue
        finished = [row for row in rows if (row.model, row.threat) == (model, case.threat) and not row.error]
        if about.differentiable:
            enough, lacks = multi_step.get(case.threat, False), "takes more than one step along a white-box route"
        else:
            enough = any(row.route == "none" and row.searches(LEAST_QUERIES) for row in finished)
            lacks = f"asks at least {LEAST_QUERIES} times about each image that it leaves right"
        if finished and not enough:
            specs = ", ".join(dict.fromkeys(row.job.named.spec for row in finished if row.job is not None))
            yield Flag("weak-attacks", f"{case.threat}, {model}: no attack that finished {lacks} ({specs})")


def stronger_self_checks(
    rows: Sequence[PendingRow], attacked: Sequence[Attacked], model: Model, eot: int
) -> Iterator[Flag]:
    """Threats within which the self-checks' PGD fools clearly more of its images than the audit's white-box attacks.

    One-step attacks are weaker by nature: without any other white-box row there is nothing to compare with.
    """
    clean = next(row for row in rows if row.job is None and row.model == model)
    for own in attacked:
        of_threat = [row for row in rows if row.model == model and row.threat == own.threat]
        white_box = white_box_rows(of_threat)
        if not any(row.takes_steps(eot) for row in white_box):
            continue
        reported = torch.stack([clean.shares, *(row.shares for row in white_box)]).amin(0)[torch.tensor(own.indices)]
        drop = significant_drop(reported, own.shares)
        # Of a few images no test would say anything, but if most of them are fooled, the audit's attacks do nothing.
        fewer = (reported - own.shares).sum().item()
        if drop is None and exceeds_one_percent(fewer, len(reported)) and fewer > reported.sum().item() / 2:
            drop = fewer
        if drop is not None:
            yield Flag(
                "stronger-self-check",
                f"{own.threat}, {model}: {own.attack} ({own.route}) fools {drop:g} more of {len(reported)} images than "
                "the audit's white-box attacks",
            )
