"""Preset ``standard`` on all test images, for the shipped purifier and the yardstick that ``robust_training.py`` makes.

``python tests/benchmarks/robust_table.py --out audited [--count 10000] [--part 250] [--processes 2] [--device cuda]``
audits in parts, each with its own ``report.json`` as ``purifier audit`` writes it, goes on where it was stopped, and
prints what the parts say together. ``--table`` only prints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from purifier.auditing.statistics import wilson

EPS = 0.1
YARDSTICK = ["--classifier", "purifier.assets.classifier:FashionClassifier", "--purifier", "identity"]
YARDSTICK += ["--route", "oblivious"]
"""The classifier alone: its rows are the report's ``undefended`` ones, the route ``oblivious`` white-box there."""
JUDGED = {"purifier": "guarded", "yardstick": "undefended"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--purifier", default="demo", help="PURIFIER spec")
    parser.add_argument("--yardstick", default="robust/yardstick.safetensors", help="its weights")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--data", default="fashion-mnist:test", help="DATA spec without a range")
    parser.add_argument("--first", type=int, default=0, help="image")
    parser.add_argument("--count", type=positive, default=10_000)
    parser.add_argument("--part", type=positive, default=250, help="images of one audit, attacked in one batch")
    parser.add_argument("--processes", type=positive, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("purifier", "yardstick"))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    models = {
        "purifier": ["--classifier", "demo", "--purifier", given.purifier],
        "yardstick": [*YARDSTICK, "--weights", given.yardstick],
    }
    models = {name: options for name, options in models.items() if given.only in (None, name)}
    last = given.first + given.count
    parts = [f"{start}-{min(start + given.part, last)}" for start in range(given.first, last, given.part)]
    if not given.table:
        common = ["--eps", str(EPS), "--device", given.device, "--batch-size", str(given.part)]
        waiting = [
            ["audit", *options, *common, "--data", f"{given.data}:{part}", "--out", str(folder)]
            for part in parts
            for name, options in models.items()
            if not is_complete((folder := given.out / name / part) / "report.json")
        ]
        run_all(waiting, given.processes)
    missing = 0
    for name in models:
        paths = [given.out / name / part / "report.json" for part in parts]
        done = [json.loads(path.read_text()) for path in paths if is_complete(path)]
        show(name, JUDGED[name], done, len(parts))
        missing += len(parts) - len(done)
    sys.exit(1 if missing else 0)


def positive(given: str) -> int:
    """A whole number, 1 or more."""
    if (number := int(given)) < 1:
        raise ValueError
    return number


def run_all(commands: Sequence[Sequence[str]], processes: int) -> None:
    """Run ``purifier`` commands, some at a time; a report is written whole, or not at all."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def run(command: Sequence[str]) -> None:
        whole = [sys.executable, "-m", "purifier.cli", *command]
        code = subprocess.run(whole, env=environment, stdout=subprocess.DEVNULL).returncode
        print(f"{command[-1]}: exit code {code}", flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, commands))


def is_complete(path: Path) -> bool:
    """Whether there is a report without an error in it."""
    return path.exists() and not any(row["error"] for row in json.loads(path.read_text())["rows"])


def show(name: str, model: str, reports: Sequence[Mapping[str, Any]], parts: int) -> None:
    """The counts of the ``parts`` that are done added up, with 95% intervals."""
    if not reports:
        print(f"{name}: none of these parts is done; give --first, --count and --part as when they were made")
        return
    asked = [(each["classifier"], each["purifier"]["sha256"], each["threats"], each["seed"]) for each in reports]
    if any(other != asked[0] for other in asked):
        raise SystemExit(f"{name}: the parts are not of one model, budget and seed; give another --out")
    rows = [row for report in reports for row in report["rows"] if row["model"] == model]
    seconds = sum(row["seconds"] for row in rows)
    flags = sorted({flag["name"] for report in reports for flag in report["flags"]})
    hours, raised = seconds / 3600, ", ".join(flags) or "none"
    print(f"{name}: {len(reports)} of {parts} parts, {hours:.1f} hours of attacks, flags: {raised}")
    found: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for row in rows:
        key = (row["attack"], row["route"] or "clean", row["sequence"] or "")
        found.setdefault(key, []).append((row["correct"], row["count"]))
    for report in reports:
        for case in report["worst_case"]:
            if case["model"] == model:
                found.setdefault(("worst case", case["scope"], ""), []).append((case["correct"], case["count"]))
    for (attack, route, sequence), counts in found.items():
        right, count = (sum(column) for column in zip(*counts, strict=True))
        low, high = wilson(right, count)
        print(f"  {attack:10s} {route:10s} {sequence:10s} {right / count:.2%} [{low:.2%}, {high:.2%}] of {count}")


if __name__ == "__main__":
    main()
