"""The audits of the published protocol, and Markdown tables of their reports.

``published_protocol.py`` trains, runs these audits and prints these tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_table import MISSING, markdown_table, percent, rate_cell

from purifier import AuditReport
from purifier.auditing.presets import PROBED
from purifier.auditing.report import Row
from purifier.vocabulary import Norm

CLASSIFIERS = ("a", "b", "c", "d")
TITLES = {
    "none": "none",
    "plain-vae": "`demo-plain`",
    "defense-vae": "Defense-VAE",
    "defense-gan": "Defense-GAN",
    "ours-shipped": "small VAE",
    "ours-for-a": "`robust` for A",
    "ours-for-a-d": "`robust` for A-D",
}
"""Folder of each defence's reports, and its title in tables."""
PUBLISHED = ("fgsm", "rfgsm:alpha=0.1667")
CW = "cw:steps=100,searches=1,initial_const=1,step_size=0.05"
"""One search of 100 steps, as in Samangouei et al.'s code; there from the weight 100 and without a budget."""
TRANSFER_DEFENCES = ("none", "ours-shipped", "ours-for-a", "ours-for-a-d")


@dataclass(frozen=True)
class PlannedAudit:
    """One audit: ``count`` test images, attacks within a threat along routes."""

    name: str
    norm: Norm
    eps: float
    attacks: Sequence[str]
    routes: Sequence[str]
    count: int
    batch_size: int = 250
    probes: int = PROBED


@dataclass(frozen=True)
class FinishedAudit:
    """A report of the protocol, and what it is about."""

    classifier: str
    defence: str
    report: AuditReport


Key = tuple[str, str, str]
"""Attack, threat and route."""
CLEAN: Key = ("none (clean)", "", "")
STRONGEST: Key = ("pgd", "linf 0.1", "exact")


def planned_audits(classifier: str, defence: str) -> Iterator[PlannedAudit]:
    """The audits of one defence; CW and Defense-GAN take seconds per image and get fewer images.

    A gradient through Defense-GAN takes two seconds. So PGD has ten steps there, the audit looks for flags on four
    images, and eps 0.1 is for classifier A only.
    """
    gan = defence == "defense-gan"
    many, some, few = (100, 50, 20) if gan else (1000, 500, 1000)
    attacks = ["fgsm", "pgd:steps=10" if gan else "pgd"]
    cost = {"batch_size": 20, "probes": 4} if gan else {}
    yield PlannedAudit("published", "linf", 0.3, PUBLISHED, ["oblivious"], many, **cost)
    yield PlannedAudit("published-cw", "l2", 3.0, [CW], ["oblivious"], some, **cost)
    yield PlannedAudit("exact", "linf", 0.3, attacks, ["exact"], few, **cost)
    if classifier == "a" or not gan:
        yield PlannedAudit("exact-0.1", "linf", 0.1, attacks, ["exact"], few, **cost)


def report_folder(out: Path, classifier: str, defence: str, audit: PlannedAudit) -> Path:
    return out / "audits" / classifier / defence / audit.name


def finished_audits(out: Path) -> list[FinishedAudit]:
    """The reports that exist, classifier by classifier."""
    return [
        FinishedAudit(classifier, defence, AuditReport.load(folder))
        for classifier in CLASSIFIERS
        for defence in TITLES
        for audit in planned_audits(classifier, defence)
        if ((folder := report_folder(out, classifier, defence, audit)) / "report.json").exists()
    ]


def classifier_table(audits: Sequence[FinishedAudit], classifier: str) -> str:
    """One row per attack, one column per defence: images right with 95% intervals; ``!`` where the report has flags."""
    found = {defence: figures(audits, classifier, defence) for defence in TITLES}
    defences = [defence for defence in TITLES if found[defence]]
    rows = []
    for key in dict.fromkeys(key for defence in defences for key in found[defence]):
        counts = {TITLES[defence]: found[defence][key][0].result for defence in defences if key in found[defence]}
        cells = [figure(found[defence].get(key)) for defence in defences]
        rows.append([*key, images({title: each.count for title, each in counts.items() if each}), *cells])
    return markdown_table(["attack", "threat", "route", "images", *(TITLES[defence] for defence in defences)], rows)


def transfer_table(audits: Sequence[FinishedAudit]) -> str:
    """One purifier in front of several classifiers: one column per classifier."""
    classifiers = [name for name in CLASSIFIERS if any(each.classifier == name for each in audits)]
    rows = []
    for defence in TRANSFER_DEFENCES:
        found = [figures(audits, classifier, defence) for classifier in classifiers]
        for key in (CLEAN, STRONGEST):
            rows.append([TITLES[defence], " ".join(key).strip(), *(figure(each.get(key)) for each in found)])
    return markdown_table(["defence", "attack, threat, route", *(name.upper() for name in classifiers)], rows)


def notes(audits: Sequence[FinishedAudit]) -> list[str]:
    """What the tables leave out: options of the attacks, defences attacked otherwise, fewer images for flags."""
    options: dict[str, list[str]] = {}
    for each in audits:
        for row in (row for row in each.report.rows if row.threat):
            titles = options.setdefault(row.attack, [])
            if (title := TITLES[each.defence]) not in titles:
                titles.append(title)
    lines = [
        f"`{attack}`: {'all defences' if len(titles) > 1 else titles[0]}"
        for attack, titles in options.items()
        if ":" in attack
    ]
    probes = {TITLES[each.defence]: each.report.probes for each in audits}
    lines += [
        f"{title}: flags looked for on {count} images, not {PROBED}"
        for title, count in probes.items()
        if count < PROBED
    ]
    if any(each.report.flags for each in audits):
        lines.append("!: the report has flags")
    return lines


def figures(audits: Sequence[FinishedAudit], classifier: str, defence: str) -> dict[Key, tuple[Row, bool]]:
    """Rows of the guard by attack, threat and route, and whether their report has flags; clean images of the first."""
    found: dict[Key, tuple[Row, bool]] = {}
    for each in (each for each in audits if (each.classifier, each.defence) == (classifier, defence)):
        for row in (row for row in each.report.rows if row.model == "guarded"):
            name = row.attack.partition(":")[0]
            threat = row.threat
            key = (name, f"{threat.norm} {threat.eps:g}", row.route or "") if threat else CLEAN
            found.setdefault(key, (row, bool(threat and each.report.flags)))
    return found


def spread(audits: Sequence[FinishedAudit], defences: Sequence[str], key: Key) -> str:
    """``13.1% to 26.9%``: the least and the greatest accuracy over classifiers and defences."""
    found = [figures(audits, classifier, defence) for classifier in CLASSIFIERS for defence in defences]
    shares = [row.result.share for each in found if key in each and (row := each[key][0]).result]
    return " to ".join(dict.fromkeys((percent(min(shares)), percent(max(shares)))))


def figure(found: tuple[Row, bool] | None) -> str:
    if found is None:
        return MISSING
    row, flagged = found
    return "error" if row.error else rate_cell(row.result) + ("!" if flagged else "")


def images(counts: dict[str, int]) -> str:
    """``1,000 (Defense-GAN 100)``: the count of most defences, and those that differ."""
    usual = max(counts.values())
    others = [f"{title} {count:,}" for title, count in counts.items() if count != usual]
    return f"{usual:,}" + (f" ({', '.join(others)})" if others else "")
