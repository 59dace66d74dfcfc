"""Damaged files and wrong options, each read in a process of its own: it is valid, or the error is a PurifierError.

``python tests/benchmarks/fuzz.py [--reader NAME] [--share 1] [--case N] [--save]`` tries the readers in
``fuzz_cases.py`` and prints a Markdown table. Other errors, crashes, cases that take over ``SECONDS``, and those that
take over ``MEGABYTES`` more memory are listed, and the exit code is 1. ``--case N`` with ``--reader`` repeats one in
this process, with its traceback. ``--save`` writes the counts to ``results/measured/fuzz.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from figures import MEASURED, RESULTS, measured_table
from fuzz_cases import Reader, readers

from purifier.foreign_code import Attempt, is_purifier_error
from purifier.onnx import cache_folder

SECONDS = 60
MEGABYTES = 1500
"""More than a limited reader can take: 512 MiB of arrays, once as they are and once as images."""
VALID, REFUSED, WRONG = "valid", "PurifierError", "other"
REPORTS = tuple(sorted((RESULTS / "published").rglob("report.json"))[::20])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", help="only this one; may be repeated")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases")
    parser.add_argument("--case", type=int, help="only this one of a reader")
    parser.add_argument("--save", action="store_true", help="write the counts for docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = {name: one for name, one in readers(REPORTS).items() if name in (given.reader or [name])}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[cache_folder.VARIABLE] = str(Path(folder) / "cache")
        if given.case is not None:
            ((name, reader),) = chosen.items()
            reader.read(Path(folder), chance_of(name, given.case))
            return
        rows, wrong = [], []
        for name, reader in chosen.items():
            counts, slowest, problems = tried(name, reader, max(1, round(reader.count * given.share)), Path(folder))
            shown = {one: counts[one] for one in (VALID, REFUSED, WRONG)}
            rows.append({"reader": name, "cases": sum(counts.values()), **shown, "slowest, s": f"{slowest:.1f}"})
            wrong += problems
            print(*rows[-1].values(), sep=" | ", file=sys.stderr, flush=True)
    print(measured_table(with_total(rows)))
    print(*wrong, sep="\n")
    if given.save:
        save(rows)
    raise SystemExit(1 if wrong else 0)


def tried(name: str, reader: Reader, count: int, folder: Path) -> tuple[Counter[str], float, list[str]]:
    """How often each outcome came, the longest time, and what was wrong."""
    counts: Counter[str] = Counter()
    slowest, problems = 0.0, []
    for case in range(count):
        began = time.perf_counter()
        outcome = outcome_of(reader, chance_of(name, case), folder)
        slowest = max(slowest, time.perf_counter() - began)
        kind = outcome if outcome in (VALID, REFUSED) else WRONG
        counts[kind] += 1
        if kind == WRONG:
            problems.append(f"{name}, case {case}: {outcome}")
            print(problems[-1], file=sys.stderr, flush=True)
    return counts, slowest, problems


def chance_of(name: str, case: int) -> random.Random:
    return random.Random(zlib.crc32(f"{name} {case}".encode()))


def outcome_of(reader: Reader, chance: random.Random, folder: Path) -> str:
    """What came of a case in a process of its own: valid, PurifierError, or what was wrong."""
    place, said = folder / "case", folder / "said"
    place.mkdir()
    said.write_text("died", encoding="utf-8")
    before = _resident()
    child = os.fork()
    if child == 0:
        _read(reader, chance, place, said)
    end = time.monotonic() + SECONDS
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            shutil.rmtree(place)
            return f"took over {SECONDS} s"
        time.sleep(0.002)
    shutil.rmtree(place)
    grown = usage.ru_maxrss / 1000 - before
    if status:
        return f"ended with status {status}"
    return f"took {grown:.0f} MB" if grown > MEGABYTES else said.read_text(encoding="utf-8")


def _read(reader: Reader, chance: random.Random, place: Path, said: Path) -> None:
    """Read, say what came of it, and end the process."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    with Attempt() as attempt:
        reader.read(place, chance)
    outcome = VALID
    if attempt.error is not None:
        outcome = REFUSED if is_purifier_error(attempt.error) else attempt.cause
    said.write_text(outcome, encoding="utf-8", errors="replace")
    os._exit(0)


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def with_total(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    total = {key: sum(row[key] for row in rows) for key in ("cases", VALID, REFUSED, WRONG)}
    return [*rows, {"reader": "all", **total, "slowest, s": None}]


def save(rows: Sequence[dict[str, Any]]) -> None:
    """Store the counts; those of other readers stay as they are."""
    path = MEASURED / "fuzz.json"
    before = json.loads(path.read_text(encoding="utf-8"))["tables"]["table"] if path.exists() else []
    found = {row["reader"]: row for row in (*before, *rows)}
    rows = [found[name] for name in readers(REPORTS) if name in found]
    source = {
        "command": ["python tests/benchmarks/fuzz.py --share SHARE --reader NAME --save"],
        "machine": f"one CPU core, {platform.machine()}",
        "versions": f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "note": f"A case may take {SECONDS} s and {MEGABYTES:,} MB. The seeds are fixed; a share is of the first "
        "cases of each reader.",
    }
    text = json.dumps({"source": source, "tables": {"table": with_total(rows)}}, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
