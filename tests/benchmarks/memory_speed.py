"""Training and auditing with and without keeping freed memory: wall and system time, page faults, peak memory.

``python tests/benchmarks/memory_speed.py [--rounds 3] [--train 2560] [--audit 200]`` runs both in turn, each in a new
process, and prints medians and ratios. Training: one epoch of the shipped recipe. Audit: PGD with 20 steps along the
exact route, through the shipped purifier.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from small_vae import CHECKPOINT, TRAINING

import purifier
from purifier.assets.classifier import demo_classifier
from purifier.data.loading import load_data
from purifier.torch_tools.memory import keep_freed_memory
from purifier.training.loop import train

FIGURES = ("seconds", "system seconds", "faults", "peak MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    parser.add_argument("--train", type=int, default=2560, help="training images")
    parser.add_argument("--audit", type=int, default=200, help="audited images")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    counts = {"train": given.train, "audit": given.audit}
    if given.one:
        what, way = given.one
        print(json.dumps(measure(what, counts[what], way == "kept")))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {' '.join(platform.libc_ver())}")
    options = ["--train", str(given.train), "--audit", str(given.audit)]
    for what, count in counts.items():
        found: dict[str, list[list[float]]] = {"plain": [], "kept": []}
        for _ in range(given.rounds):
            for way, figures in found.items():
                command = [sys.executable, __file__, *options, "--one", what, way]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                figures.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{what}, {count} images, median of {given.rounds}:")
        for index, name in enumerate(FIGURES):
            plain, kept = (median(figures[index] for figures in found[way]) for way in ("plain", "kept"))
            print(f"  {name:15s} plain {plain:10.1f}   kept {kept:10.1f}   kept / plain {kept / plain:.2f}")


def measure(what: str, count: int, kept: bool) -> list[float]:
    """Figures of the work alone, without imports and loading."""
    if kept:
        keep_freed_memory()
    classifier, shipped = demo_classifier(), purifier.load(CHECKPOINT)
    images = load_data(f"fashion-mnist:train:{count}")
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    if what == "train":
        with tempfile.TemporaryDirectory() as folder:
            options = {**TRAINING, "epochs": 1}
            train("vae", images, Path(folder) / "purifier.safetensors", classifier=classifier, **options)
    else:
        guarded = purifier.guard(classifier, shipped)
        purifier.audit(guarded, images, eps=0.1, attacks=["pgd:steps=20"], routes=["exact"])
    after = resource.getrusage(resource.RUSAGE_SELF)
    return [
        time.perf_counter() - began,
        after.ru_stime - before.ru_stime,
        after.ru_minflt - before.ru_minflt,
        after.ru_maxrss / 1024,
    ]


if __name__ == "__main__":
    main()
