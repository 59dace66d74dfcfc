"""Shares of an audit: which images each of several processes audits, and one report from all their journals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version as version_of
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, FileError, OutputError
from .closing import Checked, report_of
from .identity import Identity
from .journal import BEGINS_AGAIN, CHECKS, POOL, Journal, differences
from .keeping import Example, Purify
from .outcome import Record
from .report import AuditReport
from .running import batches_of
from .tally import Tally

JOURNALS = "audit*.journal"
"""The journals in the folder of an audit."""


def check_shard(shard: tuple[int, int] | None) -> None:
    """Raise ``ConfigError`` unless ``shard`` is (k, n), the k-th of n."""
    if shard is not None:
        k, count = shard
        if not 1 <= k <= count:
            raise ConfigError(f"shard: expected K/N with K from 1 to N, such as 2/8, got {k}/{count}")


def span_of(shard: tuple[int, int] | None, total: int, batch_size: int) -> range:
    """The positions of the images of a shard: whole batches, so that each is the batch that one process would have."""
    if shard is None:
        return range(total)
    k, count = shard
    batches = -(-total // batch_size)
    if batches < count:
        smaller = f"a batch_size of at most {total // count} for all of them, or " if total >= count else ""
        raise ConfigError(
            f"shard: {total} images are {batches} {'batches' if batches > 1 else 'batch'} of {batch_size}, fewer than "
            f"{count} shards; choose {smaller}fewer shards"
        )
    low, high = (batches * place // count for place in (k - 1, k))
    return range(low * batch_size, min(high * batch_size, total))


def journal_name(shard: tuple[int, int] | None) -> str:
    """The name of a journal in the folder of an audit."""
    return "audit.journal" if shard is None else f"audit-{shard[0]}-of-{shard[1]}.journal"


def journal_names(shard: tuple[int, int] | None, processes: int = 1) -> list[str]:
    """The names of the journals that an audit writes: of one shard, or of each process of torchrun."""
    if processes == 1:
        return [journal_name(shard)]
    return [journal_name((k, processes)) for k in range(1, processes + 1)]


def refuse_others(folder: str | Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Raise ``OutputError`` if a folder has journals of other names, or remove them."""
    for path in sorted(Path(folder).glob(JOURNALS)):
        if path.name in names:
            continue
        if not overwrite:
            raise OutputError(
                f"{path} is the journal of an audit in other shards: run its own command to go on with it, choose "
                f"another folder, or give up what it found: {BEGINS_AGAIN}",
                path,
            )
        path.unlink(missing_ok=True)


def remove_journals(folder: str | Path, names: Sequence[str]) -> None:
    """Remove the journals of an audit whose report is written."""
    for name in names:
        Path(folder, name).unlink(missing_ok=True)


def has_whole_report(folder: str | Path) -> bool:
    """Whether a folder has a report of all images of its data."""
    with suppress(FileError):
        return AuditReport.load(folder).partial is None
    return False


def replay(tally: Tally, journal: Journal) -> bool:
    """Count the whole batches that a journal has, up to the first that is not whole; return whether all are."""
    about = Identity.from_json(journal.header)
    for indices in batches_of(about.span, about.facts["batch_size"]):
        start = indices[0]
        clean = journal.clean(start)
        outcomes = [journal.outcome(start, number) for number in range(len(tally.jobs))]
        if clean is None or None in outcomes:
            return False
        tally.begin(clean)
        for number, outcome in enumerate(outcomes):
            if outcome is not None:
                tally.add(number, outcome)
    return True


def pool_record(examples: Sequence[Example], purify: Purify) -> Record:
    """What a journal keeps of the purified images of those that may become examples."""
    purified = {"purified": purify(examples)} if examples else {}
    return {"names": [one.name for one in examples]}, purified


def merge_audits(folders: Sequence[str | Path]) -> AuditReport:
    """The report of one process from the folders that the shards of an audit were written to, in any order.

    Nothing is asked again: classifier, purifier and data need not be there.

    Raises
    ------
    FileError
        A folder has no journal, journals are of different audits or versions, a shard is missing, given twice or not at
        its end.
    """
    paths = [path for folder in folders for path in _journals_in(Path(folder))]
    report = merge_journals(paths)
    return _with_command(report, [path.parent for path in paths])


def merge_journals(paths: Sequence[Path]) -> AuditReport:
    """The report of the audit whose shards' journals these are."""
    if not paths:
        raise ConfigError("expected the folders of an audit's shards, got none")
    journals = [Journal(path) for path in paths]
    for journal in journals:
        if not journal.load():
            raise _not_at_its_end(journal)
    _check_version(journals)
    found = sorted(
        ((Identity.from_json(journal.header), journal) for journal in journals), key=lambda one: one[0].span.start
    )
    _check_together(found)
    first = found[0][0]
    tally = Tally(dataclasses.replace(first, span=range(first.total)))
    for _, journal in found:
        if not replay(tally, journal) or CHECKS not in journal:
            raise _not_at_its_end(journal)
    checks = [Checked.read(_of(journal, CHECKS)) for journal in journals]
    whole = next((one for one in checks if one.checks is not None), checks[0])
    before = [flag for one in checks for flag in one.before]
    after = [flag for one in checks for flag in one.after]
    checked = Checked(list(dict.fromkeys(before)), whole.checks, list(dict.fromkeys(after)))
    pools = [_of(journal, POOL) for journal in journals]
    return report_of(tally, checked, lambda examples: _purified(examples, pools))


def _check_version(journals: Sequence[Journal]) -> None:
    """Journals of another version may count otherwise."""
    own = version_of("adversarial-purifier")
    for journal in journals:
        version = journal.header["facts"]["versions"]["purifier"]
        if version != own:
            raise FileError(
                f"{journal.path}: expected a shard of purifier {own}, got {version}; merge with that version, or audit "
                "again",
                journal.path,
            )


def _purified(examples: Sequence[Example], pools: Sequence[Record]) -> Tensor:
    found: dict[str, Tensor] = {}
    for values, tensors in pools:
        found |= dict(zip(values["names"], tensors.get("purified", ()), strict=True))
    return torch.stack([found[one.name] for one in examples])


def _check_together(found: Sequence[tuple[Identity, Journal]]) -> None:
    (first, journal), end = found[0], 0
    for about, other in found:
        mine, theirs = journal.header, other.header
        differing = list(differences({**mine, "span": 0}, {**theirs, "span": 0}))
        if differing:
            raise FileError(
                f"{other.path} is a shard of another audit than {journal.path}: {'; '.join(differing[:3])}; merge the "
                "shards of one audit",
                other.path,
            )
        if about.span.start != end:
            what = "are missing" if about.span.start > end else "are in two shards"
            low, high = sorted((end, about.span.start))
            raise FileError(f"images {low} to {high - 1} {what}; give each shard once", other.path)
        end = about.span.stop
    if end != first.total:
        raise FileError(f"images {end} to {first.total - 1} are missing; give each shard once", journal.path)


def _journals_in(folder: Path) -> list[Path]:
    found = sorted(folder.glob(JOURNALS))
    if not found:
        raise FileError(
            f"{folder} has no journal of a shard: expected a folder that `purifier audit --shard K/N --out` wrote to",
            folder,
        )
    return found


def _of(journal: Journal, name: str) -> Record:
    found = journal.read(name)
    if found is None:
        raise _not_at_its_end(journal)
    return found


def _not_at_its_end(journal: Journal) -> FileError:
    return FileError(
        f"{journal.path}: this shard is not at its end; run its command again, and it goes on", journal.path
    )


def _with_command(report: AuditReport, folders: Sequence[Path]) -> AuditReport:
    """The report with what the command line said of the audit, as a partial report of one of its shards has it."""
    for folder in folders:
        with suppress(FileError):
            part = AuditReport.load(folder)
            same = part.data["sha256"] == report.data["sha256"]
            if part.partial is not None and same and part.classifier["sha256"] == report.classifier["sha256"]:
                named = {name: part.classifier.get(name) for name in ("spec", "weights_file")}
                classifier = {**report.classifier, **named}
                return dataclasses.replace(report, classifier=classifier, command=_without_shard(part.command))
    return report


def _without_shard(command: Sequence[str] | None) -> Sequence[str] | None:
    if command is None or "--shard" not in command:
        return command
    at = list(command).index("--shard")
    return [*command[:at], *command[at + 2 :]]
