"""The time to open a guarded ONNX classifier: ``guard()`` first and second, against a plain session, in one run.

``python tests/benchmarks/guard_opening.py [--purifier SPEC ...] [--rounds N]`` exports torchvision's ResNet-18 with
random weights, and prints wall clock and CPU time of this process, medians of rounds that take turns, and ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
import torchvision

import purifier
from purifier.onnx import cache_folder
from purifier.onnx.runtime import CPU

DEFAULT = ("blur", "vae:image_shape=3x224x224,channels=16,latent=8,spatial=true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--purifier", action="append", help="PURIFIER spec; may be repeated")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[cache_folder.VARIABLE] = str(Path(folder) / "cache")
        path = Path(folder) / "resnet18.onnx"
        _export(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        for spec in given.purifier or DEFAULT:
            chosen = purifier.load(spec)
            ways: dict[str, Callable[[], object]] = {
                "plain": lambda: onnxruntime.InferenceSession(path, options, providers=[CPU]),
                "guard": lambda chosen=chosen: purifier.guard(path, chosen, providers=[CPU]),
            }
            first = _seconds(ways["guard"])
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(given.rounds):
                for name, way in ways.items():
                    times[name].append(_seconds(way))
            for place, clock in enumerate(("wall", "CPU")):
                plain, guard = (statistics.median(pair[place] for pair in times[name]) for name in ways)
                least = [min(pair[place] for pair in times[name]) for name in ways]
                print(
                    f"{spec}: {clock} first guard {first[place]:.2f} s, then {guard * 1e3:.0f} ms, plain session "
                    f"{plain * 1e3:.0f} ms: {guard / plain:.2f} times (fastest of each: {least[1] / least[0]:.2f})"
                )


def _export(path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    free = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.rand(2, 3, 224, 224),),
            path,
            dynamo=True,
            external_data=False,
            dynamic_shapes=free,
            verbose=False,
        )


def _seconds(way: Callable[[], object]) -> tuple[float, float]:
    wall, own = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - own


if __name__ == "__main__":
    main()
