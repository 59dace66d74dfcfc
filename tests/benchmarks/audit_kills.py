"""Kill an audit again and again at random moments, and see that the same call goes on and ends with the same report.

``python tests/benchmarks/audit_kills.py [--kills 25] [--images 120]`` audits ``demo-plain`` on the shipped classifier
in copies of this process. Each is ended by SIGKILL a random time after its first record, until one reaches the end.
Prints how often that was and with what in the journal; exits 1 if the report is not that of an undisturbed audit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import purifier
from purifier.auditing.details import vars_of

OPTIONS: dict[str, Any] = {
    "attacks": ("pgd:steps=5", "fgsm", "noise"),
    "batch_size": 10,
    "probes": 1,
}
FILES = ["examples.npz", "report.json", "results.npz"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="kill at least this often")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)  # the threads of a process do not survive in its copies
    guarded, data = purifier.guard("demo", "demo-plain"), f"demo:{given.images}"
    chosen, sizes = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found"
        while True:
            patience = chosen.uniform(0, 0.1) if len(sizes) < given.kills else None
            if not _killed(guarded, data, out, patience):
                break
            sizes.append(_size(out))
        left = sorted(path.name for path in out.iterdir())
        expected = purifier.audit(guarded, data, **OPTIONS)
        identical = same(purifier.AuditReport.load(out), expected) and left == FILES
    print(f"killed {len(sizes)} times, with {', '.join(f'{size:,}' for size in sizes)} bytes in the journal")
    print("the report is the same" if identical else "the report differs")
    sys.exit(0 if identical and len(sizes) >= given.kills else 1)


def _killed(guarded: Any, data: str, out: Path, patience: float | None) -> bool:
    """Audit in a copy of this process; whether it was killed, ``patience`` seconds after its first record."""
    before, status = _size(out), None
    child = os.fork()
    if not child:
        purifier.audit(guarded, data, **OPTIONS, out=out)
        os._exit(0)
    while patience is not None and status is None and _size(out) == before:
        time.sleep(0.002)
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
    if patience is not None and status is None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    if status is None:
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("an audit failed; see above")
    return os.WIFSIGNALED(status)


def _size(out: Path) -> int:
    """The size of the journal in bytes."""
    path = out / "audit.journal"
    return path.stat().st_size if path.exists() else 0


def same(one: purifier.AuditReport, other: purifier.AuditReport) -> bool:
    """Whether two reports and the arrays beside them are the same but for times and the command."""
    facts = [json.loads(report.to_json()) for report in (one, other)]
    for fact in facts:
        for name in ("created", "command"):
            del fact[name]
        for row in fact["rows"]:
            del row["seconds"]
    arrays = [[*vars_of(report.results).values(), *vars_of(report.examples).values()] for report in (one, other)]
    return facts[0] == facts[1] and all(
        np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f") for mine, theirs in zip(*arrays, strict=True)
    )


if __name__ == "__main__":
    main()
