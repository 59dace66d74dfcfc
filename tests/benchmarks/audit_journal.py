"""What a journal costs an audit, and whether shards and torchrun give the report of one process.

``python tests/benchmarks/audit_journal.py [--images 1000] [--preset standard] [--batch-size 125] [--save]`` audits
``demo-plain`` on the shipped classifier without a journal and with one, both at the same time in processes of their
own, then in eight shards that are merged, and with two processes of torchrun; ``--journal-only`` leaves those out. Each
row has the time, how much of it went into the journal, and on how many images a row of the report differs from that
without a journal. ``--save`` writes the rows to ``results/measured/audit-journal.json``; rows of other names stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audit_kills import same
from figures import MEASURED, measured_table

import purifier
from purifier import AuditReport
from purifier.auditing.journal import Journal

SHARDS = 8
ALONE = "no journal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--journal-only", action="store_true", help="leave out shards and torchrun")
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (seconds, in_journal) in ways(given, Path(folder)):
            report, first = (AuditReport.load(Path(folder, each)) for each in (name, ALONE))
            rows.append(
                {
                    "audit": name,
                    "seconds": round(seconds),
                    "of it in the journal": None if in_journal is None else {"share": in_journal / seconds},
                    "images that differ": differing(report, first),
                    "same report": "yes" if same(report, first) else "no",
                }
            )
            print(*rows[-1].values(), sep=" | ", flush=True)
    print(measured_table(rows))
    if given.save:
        save(rows, given)


Spent = tuple[float, float | None]
"""Seconds of an audit, and those of them that went into the journal, if that is known."""


def ways(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Spent]]:
    """The name of each way to audit and what it took; the report is in a folder of that name then."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        runs = {name: pool.submit(audited, given, folder / name, name != ALONE) for name in (ALONE, "journal")}
    for name, run in runs.items():
        yield name, run.result()
    if given.journal_only:
        return
    name, (seconds, in_journal) = f"{SHARDS} shards, merged", (0.0, 0.0)
    parts = [folder / f"part {k}" for k in range(1, SHARDS + 1)]
    for k, part in enumerate(parts, start=1):
        took, spent = audited(given, part, True, shard=(k, SHARDS))
        seconds, in_journal = seconds + took, in_journal + spent
    purifier.merge_audits(parts).save(folder / name)
    yield name, (seconds, in_journal)
    name, began = "2 processes of torchrun", time.perf_counter()
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "purifier", "audit"]
    line += ["--classifier", "demo", "--purifier", "demo-plain", "--data", data_of(given), "--preset", given.preset]
    line += ["--batch-size", str(given.batch_size), "--out", str(folder / name)]
    subprocess.run(line, check=False, stdout=subprocess.DEVNULL)  # 3 if a flag was raised
    seconds, report = time.perf_counter() - began, AuditReport.load(folder / name)
    named = {**report.classifier, "spec": None, "weights_file": None}
    dataclasses.replace(report, classifier=named).save(folder / name)
    yield name, (seconds, None)


def audited(
    given: argparse.Namespace, out: Path, journal: bool, shard: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Audit on one thread and save the report in ``out``; the seconds, and those that went into the journal."""
    torch.set_num_threads(1)
    guarded = purifier.guard("demo", "demo-plain")
    options = {"preset": given.preset, "batch_size": given.batch_size, "device": "cpu", "shard": shard}
    began, before = time.perf_counter(), writing_time()
    report = purifier.audit(guarded, data_of(given), **options, out=out if journal else None)
    seconds = time.perf_counter() - began
    if not journal:
        report.save(out)
    return seconds, writing_time() - before


def data_of(given: argparse.Namespace) -> str:
    return f"fashion-mnist:test:{given.images}"


_write, _seconds = Journal.write, [0.0]


def _timed(self: Journal, name: str, record: Any) -> None:
    began = time.perf_counter()
    _write(self, name, record)
    _seconds[0] += time.perf_counter() - began


Journal.write = _timed  # type: ignore[method-assign]


def writing_time() -> float:
    """Seconds that went into journals so far."""
    return _seconds[0]


def differing(one: AuditReport, other: AuditReport) -> int:
    """On how many images some row of two reports has other results."""
    assert one.results is not None and other.results is not None
    return int((~np.isclose(one.results.counted, other.results.counted, equal_nan=True)).any(0).sum())


def save(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Write the rows, and how they were made."""
    source = {
        "command": ["python tests/benchmarks/audit_journal.py --save"]
        if (given.images, given.preset) == (1000, "standard")
        else [f"python tests/benchmarks/audit_journal.py --images {given.images} --preset {given.preset} --save"],
        "machine": f"{os.cpu_count()} CPU cores, one thread a process",
        "versions": f"torch {torch.__version__}",
        "date": date.today().isoformat(),
        "seed": 0,
    }
    path = MEASURED / "audit-journal.json"
    known = json.loads(path.read_text(encoding="utf-8"))["tables"]["table"] if path.exists() else []
    by_name = {row["audit"]: row for row in [*known, *rows]}
    content = {"source": source, "tables": {"table": [*by_name.values()]}}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
