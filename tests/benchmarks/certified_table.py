"""Certificates of a ``certified`` purifier in front of several classifiers, and what its guard costs beside ``demo``.

``python tests/benchmarks/certified_table.py --out FOLDER [--save]``: bounds for all test images behind the shipped
classifier, the classifiers A to D (trained for two epochs unless their weights are in the folder), and one of them as
an ONNX file. Then the time of each guard in ONNX Runtime, in turns, on one thread. ``--save`` writes the rows for
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from figures import MEASURED, measured_table
from published_protocol import CLASSIFIERS, classifier_of, train_classifier

import purifier
from guard_speed import measure
from purifier.auditing.statistics import Rate
from purifier.classifiers.loading import load_classifier
from purifier.data.loading import load_data
from purifier.onnx.runtime import CPU

EPOCHS = 2
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--purifier", default="demo-certified")
    parser.add_argument("--data", default="fashion-mnist:test")
    parser.add_argument("--out", type=Path, required=True, help="folder for the classifiers' weights")
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tables = {
        "certified": certificates(given.purifier, given.data, given.out),
        "cost": times(given.purifier, given.out),
    }
    for rows in tables.values():
        print(measured_table(rows), end="\n\n")
    if given.save:
        save(tables)


def certificates(spec: str, data: str, out: Path) -> Rows:
    """A row for each classifier: right without a guard, right behind it, and certified."""
    config = purifier.load(spec).config
    first, rows = None, Rows()
    for name, classifier in classifiers(out, config.image_shape).items():
        clean = purifier.audit(purifier.guard(classifier, "identity"), data, attacks=())
        made = purifier.certify(purifier.guard(classifier, spec), data, eps=[config.eps / 2, config.eps])
        first = first or made
        alone = next(row.result for row in clean.rows if row.model == "undefended")
        same = sum(pair[0] == pair[1] for pair in zip(made.radii, first.radii, strict=True))
        rows.append(
            {
                "classifier": name,
                "right, no guard": counted(alone),
                "right, certified guard": counted(made.certified(0)),
                f"certified, {config.norm} {config.eps / 2:g}": counted(made.certified(config.eps / 2)),
                f"certified, {config.norm} {config.eps:g}": counted(made.certified(config.eps)),
                "same certificates": f"{same:,} of {len(made.radii):,}",
                "seconds": round(made.seconds),
            }
        )
        print(rows[-1], flush=True)
    return rows


def classifiers(out: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    """By name; those that are not in the folder are trained."""
    found: dict[str, Any] = {"shipped": load_classifier("demo")}
    for name in CLASSIFIERS:
        weights = out / f"{name}.safetensors"
        if not weights.exists():
            train_classifier(name, load_data("fashion-mnist:train:55000"), weights, torch.device("cpu"), epochs=EPOCHS)
        found[name.upper()] = classifier_of(out, name)
    plain = purifier.guard(found["A"], "identity")
    found["A, an ONNX file"] = purifier.export(plain, out / "a.onnx", image_shape=shape).path
    return found


def counted(rate: Rate) -> dict[str, int]:
    return {"correct": round(rate.correct), "count": rate.count}


def times(spec: str, out: Path) -> Rows:
    """Median ms a batch in ONNX Runtime on one thread: the shipped classifier alone, behind ``demo``, and certified."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {}
    for name in ("identity", "demo", spec):
        path = purifier.export(purifier.guard("demo", name), out / "timed.onnx", image_shape=(1, 28, 28)).path
        sessions[name] = onnxruntime.InferenceSession(path, options, providers=[CPU])
    rows = Rows()
    for size in (1, 32, 256):
        images = load_data("demo").batch(range(size))[0].numpy()

        def call(name: str, images: np.ndarray = images) -> object:
            return sessions[name].run(None, {sessions[name].get_inputs()[0].name: images})

        found = measure({name: lambda name=name: call(name) for name in sessions}, "cpu")
        for name, seconds in found.items():
            times_demo = round(seconds / found["demo"], 2)
            rows.append(
                {"purifier": f"`{name}`", "batch": size, "ms": f"{seconds * 1e3:.3f}", "times `demo`": times_demo}
            )
    return rows


def save(tables: dict[str, Rows]) -> None:
    """Write the rows, and how they were made."""
    source = {
        "command": ["python tests/benchmarks/certified_table.py --out FOLDER --save"],
        "machine": "one CPU core, x86_64",
        "versions": f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}",
        "date": date.today().isoformat(),
    }
    content = json.dumps({"source": source, "tables": tables}, indent=1)
    (MEASURED / "certified.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
