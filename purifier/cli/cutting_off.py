"""Audits that are cut off or run in shares: the value of ``--shard``, torchrun, and what is said at an early end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, OutputError
from ..exclusive import exclusive
from ..interrupts import ENDS, described
from .console import plain_console

if TYPE_CHECKING:
    from ..auditing.report import AuditReport


def read_shard(text: str | None, *, gated: bool) -> tuple[int, int] | None:
    """``2/8`` -> (2, 8); ``gated`` says whether the command has gates, for which one shard is too little."""
    if text is None:
        return None
    k, _, count = text.partition("/")
    if not (k.isdecimal() and count.isdecimal() and 1 <= int(k) <= int(count)):
        raise ConfigError(f"--shard: expected K/N with K from 1 to N, such as 2/8, got {text!r}")
    if gated:
        raise ConfigError("--shard: one shard has no verdict; give the gates to `purifier report merge`")
    return int(k), int(count)


def processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process of torchrun that prints and writes, or the only one."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def one_writer(path: Path) -> AbstractContextManager[None]:
    """Keep ``path`` for this process, or under torchrun for the first one."""
    return exclusive(path) if is_first_process() else nullcontext()


@contextmanager
def says_how_to_go_on(out: Path, *, quiet: bool) -> Iterator[None]:
    """Say what is kept in ``out`` when the audit inside is ended early."""
    from ..auditing.shards import JOURNALS, has_whole_report

    try:
        yield
    except (*ENDS, OutputError) as end:
        stopped = not isinstance(end, OutputError) or isinstance(end.__cause__, OSError)  # for example by a full disk
        if stopped and any(out.glob(JOURNALS)) and not isinstance(end, SystemExit):
            partial = (out / "report.json").exists() and not has_whole_report(out)
            what = f"{out} has what was found, and a partial report" if partial else f"{out} has what was found"
            plain_console(stderr=True, soft_wrap=True, quiet=quiet).print(
                f"{described(end)}; {what}; the same command goes on from there", markup=False
            )
        raise


def save_report(report: AuditReport, out: Path, shard: tuple[int, int] | None) -> None:
    """Write the report; if it is about all images, the journals that it was made from are no longer needed."""
    from ..auditing.shards import journal_names, remove_journals

    report.save(out)
    if report.partial is None:
        remove_journals(out, journal_names(shard, processes()))


def say_that_it_goes_on(out: Path, shard: tuple[int, int] | None, *, quiet: bool) -> None:
    """Say so if there is a journal of an audit that was cut off."""
    if has_journal(out, shard):
        plain_console(stderr=True, soft_wrap=True, quiet=quiet).print(
            f"{out} has the journal of an audit that was cut off: what it found is not looked for again", markup=False
        )


def has_journal(out: Path, shard: tuple[int, int] | None) -> bool:
    """Whether an audit that was cut off can go on in ``out``."""
    from ..auditing.shards import journal_names

    return any((out / name).exists() for name in journal_names(shard, processes()))
