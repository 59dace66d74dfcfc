"""What changed between two audits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from ..auditing.comparing import significant_drop
from ..auditing.figures import rate_text
from ..auditing.layout import SPEC_PARTS, Column, Sheet, print_pairs, say
from ..auditing.report import AuditReport, Row
from ..auditing.statistics import Rate, exact_mcnemar

FACTS = ("classifier", "purifier", "preprocessing", "data", "threats", "calibration", "versions")
LEVEL = 0.01
SETTINGS = ("preset", "seed", "judgements", "eot", "on_reject", "abstain", "on_bad_pixels", "device", "probes")
UNIMPORTANT = {"spec", "file", "weights_file", "description"}
"""What may be called differently and still be the same."""


@dataclass(frozen=True)
class Change:
    """One figure in both reports; None in a report that lacks it."""

    name: tuple[str, str, str, str]
    """Model, attack or worst case, route, threat."""
    old: Rate | None
    new: Rate | None
    lost: int | None
    """Images right in more than half of the judgements before and not now; None unless both reports kept the results
    of the same images."""
    gained: int | None
    verdict: str
    """same, worse, better or within chance: McNemar's test at 1% on the same images, else where intervals do not
    meet."""


@dataclass(frozen=True)
class Difference:
    """What changed from an old report to a new one."""

    facts: Sequence[tuple[str, str, str]]
    """What was audited otherwise: name, old and new value."""
    changes: Sequence[Change]
    raised: Sequence[str]
    """Flags that the old report does not have."""
    gone: Sequence[str]
    """Flags that the new one does not have."""
    same_images: bool


def difference(old: AuditReport, new: AuditReport) -> Difference:
    """Compare two reports: clean images, worst cases, and each attack that both ran."""
    same_images = old.data["sha256"] is not None and _images(old) == _images(new)
    before, after = _figures(old), _figures(new)
    changes = [
        _change(name, before.get(name), after.get(name), (old, new) if same_images else None)
        for name in dict.fromkeys((*after, *before))
    ]
    flags_before, flags_after = ({flag.name for flag in report.flags} for report in (old, new))
    return Difference(
        facts=_facts(old, new),
        changes=changes,
        raised=sorted(flags_after - flags_before),
        gone=sorted(flags_before - flags_after),
        same_images=same_images,
    )


def _images(report: AuditReport) -> tuple[object, ...]:
    """Which images a report is about: a hash of the data, and which part of them."""
    part = report.partial
    return (report.data["sha256"], *(() if part is None else (part.begin, part.end)))


_Name = tuple[str, str, str, str]
_Figure = tuple[Rate | None, list[int]]
"""A rate, and the rows whose smallest results it is made of."""


def _figures(report: AuditReport) -> dict[_Name, _Figure]:
    found: dict[_Name, _Figure] = {}
    for case in report.worst_case:
        members = [
            place
            for place, row in enumerate(report.rows)
            if row.model == case.model and row.threat in (None, case.threat) and row.route in (None, *case.routes)
        ]
        found[case.model, f"worst case, {case.scope}", "", str(case.threat)] = case.result, members
    for place, row in enumerate(report.rows):
        found[_name(row)] = row.result, [place]
    return found


def _name(row: Row) -> _Name:
    kind = f"{'> ' if row.sequence else ''}{row.attack}" if row.threat else "clean images"
    draws = f" (eot {row.eot})" if row.threat and row.eot > 1 else ""
    return row.model, kind + draws, row.route or "", str(row.threat or "")


def _change(
    name: _Name, old: _Figure | None, new: _Figure | None, reports: tuple[AuditReport, AuditReport] | None
) -> Change:
    before, after = (None if one is None else one[0] for one in (old, new))
    if old is None or new is None or before is None or after is None:
        return Change(name, before, after, None, None, "only in the " + ("new" if before is None else "old"))
    results = [None, None] if reports is None else [report.results for report in reports]
    was, now = (
        None if found is None else torch.from_numpy(found.worst(figure[1]))
        for found, figure in zip(results, (old, new), strict=True)
    )
    if was is None or now is None:
        apart = before.interval[0] > after.interval[1] or after.interval[0] > before.interval[1]
        return Change(name, before, after, None, None, _verdict(before, after, apart))
    lost, gained = int(((was > 0.5) & (now <= 0.5)).sum()), int(((was <= 0.5) & (now > 0.5)).sum())
    beyond = any(
        significant_drop(one, other) is not None and exact_mcnemar(fallen, risen) <= LEVEL
        for one, other, fallen, risen in ((was, now, lost, gained), (now, was, gained, lost))
    )
    return Change(name, before, after, lost, gained, _verdict(before, after, beyond))


def _verdict(before: Rate, after: Rate, beyond: bool) -> str:
    """``beyond`` says whether a change is beyond chance."""
    if before.share == after.share:
        return "same"
    if not beyond:
        return "within chance"
    return "worse" if after.share < before.share else "better"


def _facts(old: AuditReport, new: AuditReport) -> list[tuple[str, str, str]]:
    names = (*FACTS, *SETTINGS)
    before, after = (_flat("", {name: getattr(report, name) for name in names}) for report in (old, new))
    found = [(name, before.get(name), after.get(name)) for name in dict.fromkeys((*before, *after))]
    return [(name, _short(one), _short(other)) for name, one, other in found if one != other]


def _flat(name: str, value: object) -> dict[str, object]:
    """Nested mappings as one, with names such as ``purifier.config.latent``."""
    if not isinstance(value, dict):
        return {name: list(value) if isinstance(value, tuple) else value}
    inner = [(f"{name}.{key}".lstrip("."), one) for key, one in value.items() if key not in UNIMPORTANT]
    return {key: one for place, part in inner for key, one in _flat(place, part).items()}


def _short(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def print_difference(found: Difference, console: Console) -> None:
    """Print what was audited otherwise, every figure that both have, and the flags."""
    if found.facts:
        say(console, "audited otherwise")
        print_pairs(console, [(name, f"{old} -> {new}") for name, old, new in found.facts], indent="  ")
    else:
        say(console, "the same was audited in the same way")
    if not found.same_images:
        say(console, "the images differ, so figures are compared by their intervals only", style="bold")
    columns = [
        Column("figure", heading=True, breaks=SPEC_PARTS),
        *(Column(name) for name in ("old", "new", "lost", "gained", "change")),
    ]
    sheet = Sheet("share of images with 95% interval; lost and gained: of the same images", columns)
    for change in found.changes:
        counts = ("-" if count is None else str(count) for count in (change.lost, change.gained))
        figure = ", ".join(part for part in change.name if part)
        sheet.add(figure, rate_text(change.old), rate_text(change.new), *counts, change.verdict)
    sheet.print(console)
    say(
        console,
        "worse and better: beyond chance by McNemar's test at 1% on the same images; without their results, where the "
        "intervals do not meet",
    )
    for name in found.raised:
        say(console, f" {name}", lead="new flag", lead_style="bold red")
    for name in found.gone:
        say(console, f"flag gone {name}")
