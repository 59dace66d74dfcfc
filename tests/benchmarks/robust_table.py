"""Preset ``standard`` on all test images, for the shipped purifier and the yardstick that ``robust_training.py`` makes.

``python tests/benchmarks/robust_table.py --out audited [--count 10000] [--part 250] [--processes 2] [--device cuda]``
audits the images in parts and writes a ``report.json`` for each, as ``purifier audit`` does. It continues where it was
stopped, then adds the parts up and prints a table. ``--table`` prints the table only. For CIFAR-10 (with this folder in
``PYTHONPATH``): ``--classifier cifar_classifier:stock --weights stock.safetensors --data folder:cifar/test --eps 8/255
--purifier CHECKPOINT --yardstick WEIGHTS``; other options of ``purifier audit`` can follow at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from figures import add_up
from markdown_table import markdown_table, rate_cell

from purifier import AuditReport
from purifier.auditing.report import Model
from purifier.auditing.statistics import Rate

EPS = "0.1"
YARDSTICK = ["--purifier", "identity", "--route", "oblivious"]
"""The classifier alone: its rows are the ``undefended`` ones of the report, made by the sequence ``oblivious``."""
JUDGED: Mapping[str, Model] = {"purifier": "guarded", "yardstick": "undefended"}
CLEAN = "none (clean)"
WORST = "**worst case per image**"
WHITE_BOX_ROUTES, ALL_ROUTES = "white-box routes", "all routes"
ROUTES = ("", "exact", "bpda", "none", "oblivious", WHITE_BOX_ROUTES, ALL_ROUTES)
"""In the order of the table; clean images have none."""


@dataclass(frozen=True)
class Audited:
    """The reports of one column of the table, and which of their two models it is about."""

    model: Model
    reports: Sequence[AuditReport]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", default="demo", help="MODEL spec; the yardstick has its architecture")
    parser.add_argument("--weights", help="of the classifier")
    parser.add_argument("--purifier", default="demo", help="PURIFIER spec")
    parser.add_argument("--yardstick", default="robust/yardstick.safetensors", help="weights of the yardstick")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--data", default="fashion-mnist:test", help="DATA spec without a range")
    parser.add_argument("--eps", default=EPS)
    parser.add_argument("--first", type=int, default=0, help="index of the first image")
    parser.add_argument("--count", type=positive, default=10_000, help="number of images")
    parser.add_argument("--part", type=positive, default=250, help="images of one audit, attacked as one batch")
    parser.add_argument("--processes", type=positive, default=2, help="audits at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("purifier", "yardstick"), help="one of the two models")
    parser.add_argument("--table", action="store_true", help="print the table of the reports that exist, audit nothing")
    given, others = parser.parse_known_args()
    frozen = ["--classifier", given.classifier, *(["--weights", given.weights] if given.weights else [])]
    architecture = "purifier.assets.classifier:FashionClassifier" if given.classifier == "demo" else given.classifier
    models = {
        "purifier": [*frozen, "--purifier", given.purifier],
        "yardstick": ["--classifier", architecture, "--weights", given.yardstick, *YARDSTICK],
    }
    models = {name: options for name, options in models.items() if given.only in (None, name)}
    last = given.first + given.count
    parts = [f"{start}-{min(start + given.part, last)}" for start in range(given.first, last, given.part)]
    if not given.table:
        common = ["--eps", given.eps, "--device", given.device, "--batch-size", str(given.part), *others]
        waiting = [
            ["audit", *options, *common, "--data", f"{given.data}:{part}", "--out", str(folder)]
            for part in parts
            for name, options in models.items()
            if not is_complete((folder := given.out / name / part) / "report.json")
        ]
        run_all(waiting, given.processes)
    done: dict[str, Audited] = {}
    for name in models:
        paths = [given.out / name / part / "report.json" for part in parts]
        done[name] = Audited(JUDGED[name], [AuditReport.load(path) for path in paths if is_complete(path)])
        print(progress(name, done[name], len(parts)))
    try:
        print(f"\n{robust_table(done)}")
    except ValueError as error:
        raise SystemExit(str(error)) from error
    sys.exit(0 if all(len(audited.reports) == len(parts) for audited in done.values()) else 1)


def positive(given: str) -> int:
    """A whole number, 1 or more."""
    if (number := int(given)) < 1:
        raise ValueError
    return number


def run_all(commands: Sequence[Sequence[str]], processes: int) -> None:
    """Run ``purifier`` commands, ``processes`` at a time."""
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
    return path.exists() and AuditReport.load(path).complete


def progress(title: str, audited: Audited, parts: int) -> str:
    """How many parts are done, how long their attacks took, and which flags they raised."""
    reports = audited.reports
    if not reports:
        return f"{title}: no part is done; give the --first, --count and --part that they were made with"
    seconds = sum(row.seconds for report in reports for row in report.rows if row.model == audited.model)
    flags = ", ".join(sorted({flag.name for report in reports for flag in report.flags})) or "none"
    return f"{title}: {len(reports)} of {parts} parts, {seconds / 3600:.1f} hours of attacks, flags: {flags}"


def robust_table(columns: Mapping[str, Audited]) -> str:
    """Markdown: one row per attack and route, one column per model; the counts of its reports added up, 95% intervals.

    Raises
    ------
    ValueError
        The reports of one model differ in model, threat or seed.
    """
    found = {title: rates(title, audited) for title, audited in columns.items() if audited.reports}
    keys = list(dict.fromkeys(key for column in found.values() for key in column))
    keys.sort(key=lambda key: ROUTES.index(key[1]))
    rows = ([*key, *(rate_cell(column.get(key)) for column in found.values())] for key in keys)
    return markdown_table(["attack", "route", *found], rows)


def rates(title: str, audited: Audited) -> dict[tuple[str, str], Rate]:
    """Images right by attack and route, over reports that each cover a part of the images."""
    reports, model = audited.reports, audited.model
    if len({(str(each.classifier), each.purifier["sha256"], str(each.threats), each.seed) for each in reports}) > 1:
        raise ValueError(f"{title}: expected reports of one model, threat and seed; give another --out")
    counts: dict[tuple[str, str], list[Rate]] = {}
    for report in reports:
        for row in (row for row in report.rows if row.model == model and row.result):
            key = (row.attack, row.route or "") if row.threat else (CLEAN, "")
            counts.setdefault(key, []).append(row.result)
        for case in (case for case in report.worst_case if case.model == model):
            routes = ALL_ROUTES if case.scope == "all" else WHITE_BOX_ROUTES
            counts.setdefault((WORST, routes), []).append(case.result)
    return {key: add_up(parts) for key, parts in counts.items()}


if __name__ == "__main__":
    main()
