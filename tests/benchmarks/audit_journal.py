"""What a journal costs an audit, and whether shards and torchrun give the report of one process.

``python tests/benchmarks/audit_journal.py [--images 1000] [--preset standard] [--batch-size 125] [--save]`` audits
``demo-plain`` on the shipped classifier without a journal and with one, in eight shards that are merged, and with two
processes of torchrun. Each row has the time, how much of it went into the journal, and on how many images a row of the
report differs from the first run's. ``--save`` writes the rows to ``results/measured/audit-journal.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        first: AuditReport | None = None
        for name, run in ways(given, Path(folder)):
            began, spent = time.perf_counter(), writing_time()
            report = run()
            seconds, spent = time.perf_counter() - began, writing_time() - spent
            first = first or report
            rows.append(
                {
                    "audit": name,
                    "seconds": round(seconds),
                    "of it in the journal": {"share": spent / seconds} if "process" not in name else None,
                    "images that differ": differing(report, first),
                    "same report": "yes" if same(report, first) else "no",
                }
            )
            print(*rows[-1].values(), sep=" | ", flush=True)
    print(measured_table(rows))
    if given.save:
        save(rows, given)


def ways(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Callable[[], AuditReport]]]:
    """The name and the run of each way to audit."""
    guarded, data = purifier.guard("demo", "demo-plain"), f"fashion-mnist:test:{given.images}"
    options = {"preset": given.preset, "batch_size": given.batch_size, "device": "cpu"}
    yield "no journal", lambda: purifier.audit(guarded, data, **options)
    yield "journal", lambda: purifier.audit(guarded, data, **options, out=folder / "one")

    def in_shards() -> AuditReport:
        parts = [folder / str(k) for k in range(1, SHARDS + 1)]
        for k, part in enumerate(parts, start=1):
            purifier.audit(guarded, data, **options, out=part, shard=(k, SHARDS))
        return purifier.merge_audits(parts)

    yield f"{SHARDS} shards, merged", in_shards

    def with_torchrun() -> AuditReport:
        line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "purifier", "audit"]
        line += ["--classifier", "demo", "--purifier", "demo-plain", "--data", data, "--preset", given.preset]
        line += ["--batch-size", str(given.batch_size), "--out", str(folder / "two")]
        subprocess.run(line, check=False, stdout=subprocess.DEVNULL)  # 3 if a flag was raised
        report = AuditReport.load(folder / "two")
        named = {**report.classifier, "spec": None, "weights_file": None}
        return dataclasses.replace(report, classifier=named)

    yield "2 processes of torchrun", with_torchrun


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
        "machine": f"{os.cpu_count()} CPU cores, one thread a process, {platform.machine()}",
        "versions": f"torch {torch.__version__}",
        "date": date.today().isoformat(),
        "seed": 0,
    }
    path = MEASURED / "audit-journal.json"
    path.write_text(json.dumps({"source": source, "tables": {"table": rows}}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
