"""The time a guard costs: the classifier alone, guarded in torch, and guarded in onnxruntime, in one run.

``python tests/benchmarks/guard_speed.py [--purifier SPEC] [--device cuda]`` prints medians in ms per batch and ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import purifier
from purifier.classifiers.loading import load_classifier
from purifier.data.loading import load_data
from purifier.onnx.runtime import CPU, CUDA, open_session
from purifier.timing.ways import options_for_turns

ROUNDS = 30


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--purifier", default="demo", help="PURIFIER spec")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    classifier = load_classifier("demo")
    assert isinstance(classifier, nn.Module)
    guarded = purifier.guard(classifier.to(given.device), given.purifier, check=given.device == "cpu")
    with tempfile.TemporaryDirectory() as folder:
        exported = purifier.export(guarded, Path(folder) / "guarded.onnx")
        session = open_session(
            exported.path, providers=[CUDA if given.device.startswith("cuda") else CPU], options=options_for_turns()
        )
    name, data = session.get_inputs()[0].name, load_data("demo")
    print(f"torch {torch.__version__} on {given.device}, {torch.get_num_threads()} threads, purifier {given.purifier}")
    for size in (1, 32, 256):
        pixels = data.batch(range(size))[0]
        moved, array = pixels.to(given.device), pixels.numpy()

        def in_onnxruntime(array=array):
            return session.run(None, {name: array})

        ways: dict[str, Callable[[], object]] = {
            "classifier alone, torch": lambda moved=moved: classifier(moved),
            "guarded, torch": lambda moved=moved: guarded(moved),
            "guarded, onnxruntime": in_onnxruntime,
        }
        times = measure(ways, given.device)
        base = times["guarded, torch"]
        for way, median in times.items():
            print(f"batch {size:4d}  {way:25s} {median * 1e3:9.3f} ms   {base / median:5.2f}x of guarded torch's speed")


def measure(ways: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Median seconds of each way; the ways take turns."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(ROUNDS + 3):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn >= 3:
                found[way].append(time.perf_counter() - began)
    return {way: statistics.median(values) for way, values in found.items()}


if __name__ == "__main__":
    main()
