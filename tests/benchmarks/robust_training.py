"""Train a purifier with the recipe ``robust`` for the shipped classifier, and its yardstick.

``python tests/benchmarks/robust_training.py --out robust [--recipe robust:eps=0.1] [--epochs N]``
trains the purifier. Then it trains the yardstick: the architecture of the classifier, from scratch, with the same loop,
recipe and data, for as many minutes. It skips what is already trained. It prints images per second and the speed of
matrix multiplication on this machine, and writes ``purifier.safetensors`` and ``yardstick.safetensors``, for audits by

``purifier audit --classifier demo --purifier robust/purifier.safetensors ...``
``purifier audit --classifier purifier.assets.classifier:FashionClassifier --weights robust/yardstick.safetensors
--purifier identity ...``
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from small_vae import TRAINING
from yardstick import Reader, register

from purifier.assets.build import SELECTED_DATA
from purifier.assets.classifier import FashionClassifier, demo_classifier
from purifier.contracts.checkpoint import read_tensors, write_tensors
from purifier.data.loading import load_data
from purifier.torch_tools.memory import keep_freed_memory
from purifier.training.loop import train
from purifier.training.state import log_path, state_path

PROBED = 4
"""Epochs trained to see how long one of the yardstick takes; the first is a warm-up and does not count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--data", default=SELECTED_DATA, help="DATA spec")
    parser.add_argument("--recipe", default=TRAINING["recipe"], help="recipe of both trainings")
    parser.add_argument("--epochs", type=int, default=TRAINING["epochs"], help="epochs of the purifier")
    parser.add_argument("--processes", type=int, default=2, help="processes of one training")
    parser.add_argument("--one", choices=("purifier", "probe", "yardstick"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True)
    if given.one:
        train_one(given.one, given.data, given.out, given.recipe, given.epochs)
        return
    print(
        f"torch {torch.__version__}, {given.processes} processes, {given.data}; one core multiplies matrices at "
        f"{matmul_rate(torch.float32):.0f} GFLOP/s in float32, {matmul_rate(torch.bfloat16):.0f} in bfloat16"
    )
    seconds = sum(launch("purifier", given, given.epochs))
    _, *probed = launch("probe", given, PROBED)
    launch("yardstick", given, max(1, round(seconds * len(probed) / sum(probed))))
    written, _ = read_tensors(checkpoint_of(given.out, "yardstick"))
    weights = {name.removeprefix("classifier."): value for name, value in written.items()}
    write_tensors(weights, given.out / "yardstick.safetensors", {})


def launch(which: str, given: argparse.Namespace, epochs: int) -> list[float]:
    """Train under torchrun unless it is done; print a summary of the log, return the seconds of each epoch."""
    log = log_path(checkpoint_of(given.out, which))
    path = checkpoint_of(given.out, which)
    if state_path(path).exists() or not path.exists():
        run(which, given, epochs)
    entries = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    seconds: list[float] = [entry["seconds"] for entry in entries]
    speed = sum(entry["images_per_second"] for entry in entries) / len(entries)
    figures = ", ".join(f"{name} {value:.1%}" for name, value in entries[-1]["figures"].items())
    minutes = sum(seconds) / 60
    print(f"{which}: {len(entries)} epochs in {minutes:.1f} minutes, {speed:.0f} images/s; {figures}", flush=True)
    return seconds


def run(which: str, given: argparse.Namespace, epochs: int) -> None:
    """Train on several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(given.processes)]
    command += [__file__, "--out", str(given.out), "--data", given.data, "--recipe", given.recipe]
    command += ["--epochs", str(epochs), "--one", which]
    threads = max(1, (os.cpu_count() or 1) // given.processes)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def train_one(which: str, data: str, out: Path, recipe: str, epochs: int) -> None:
    """The work of one process of torchrun."""
    keep_freed_memory()
    path, images = checkpoint_of(out, which), load_data(data)
    options = {**TRAINING, "recipe": recipe, "epochs": epochs, "resume": state_path(path).exists()}
    if which == "purifier":
        train("vae", images, path, classifier=demo_classifier(), **options)
        return
    register("written", FashionClassifier)
    train("written", images, path, classifier=Reader(demo_classifier()), **{**options, "config": None})


def checkpoint_of(out: Path, which: str) -> Path:
    return out / (f"{which}.safetensors" if which == "purifier" else f"{which}-written.safetensors")


def matmul_rate(dtype: torch.dtype, size: int = 1024, seconds: float = 2.0) -> float:
    """GFLOP/s of one thread that multiplies square matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    main()
