"""``purifier.bench`` of three guards, each in one run: the table of docs/benchmarks.md.

``python tests/benchmarks/bench_tables.py [--seconds 5] [--save]`` times the shipped classifier behind the small VAE
and behind ``latent`` with 12 steps, and ResNet-50 with random weights behind an untrained ``vae`` of size ``tiny``.
Prints p50 in ms per batch and how many times as fast as in eager torch the guard answers in ONNX Runtime. ``--save``
writes the rows to ``results/measured/bench.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import onnxruntime
import torch
from cuda_sessions import colour, descending, grey
from figures import MEASURED, measured_table

import purifier
from purifier import BenchReport

GUARD = ("guard", "torch")
WAYS = (("classifier", "torch"), GUARD, ("guard", "torch.compile"), ("classifier", "onnxruntime"))
EXPORTED = ("guard", "onnxruntime")


@dataclass(frozen=True)
class Case:
    """A guard and the batches it is timed with."""

    made: Any
    batch_sizes: Sequence[int]


CASES = (Case(grey, (1, 8, 32, 256)), Case(descending, (32, 256)), Case(colour, (1, 8)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way and batch size")
    parser.add_argument("--save", action="store_true", help="write the rows to results/measured")
    given = parser.parse_args()
    rows = []
    for case in CASES:
        name, classifier, filter_, shape = case.made()
        report = purifier.bench(
            purifier.guard(classifier, filter_),
            batch_sizes=case.batch_sizes,
            image_shape=shape,
            seconds=given.seconds,
            progress=lambda said, name=name: print(f"{name}: {said}", flush=True),
        )
        for why in report.missing.items():
            print(*why, sep=": ")
        rows += [*rows_of(name, report)]
    print(measured_table(rows))
    if given.save:
        save(rows, report)


def rows_of(name: str, report: BenchReport) -> Iterator[dict[str, Any]]:
    """One row for each batch size."""
    for size in dict.fromkeys(timing.batch_size for timing in report.timings):
        found = {(one.what, one.engine): one.p50 for one in report.timings if one.batch_size == size}
        ms = {f"{what}, {engine}": _ms(found.get((what, engine))) for what, engine in (*WAYS, EXPORTED)}
        yield {"model": name, "batch": size, **ms, "torch / onnxruntime": f"{found[GUARD] / found[EXPORTED]:.2f}"}


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1e3 * seconds:.2f}"


def save(rows: list[dict[str, Any]], report: BenchReport) -> None:
    """Write the rows, and how they were made."""
    machine = report.machine
    source = {
        "command": ["python tests/benchmarks/bench_tables.py --save"],
        "machine": f"{machine.threads} CPU cores, {machine.flops / 1e9:.0f} GFLOP/s in products of matrices, "
        f"{machine.bandwidth / 1e9:.1f} GB/s",
        "versions": f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}",
        "date": date.today().isoformat(),
    }
    path = MEASURED / "bench.json"
    path.write_text(json.dumps({"source": source, "tables": {"table": rows}}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
