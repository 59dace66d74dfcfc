"""Guarded sessions on CUDA: images as NumPy arrays, as tensors on the GPU, and with CUDA graphs, beside torch.

``python tests/benchmarks/cuda_sessions.py [--no-tests] [--save]`` first runs the tests marked ``gpu``, then prints
medians in ms per batch of the shipped classifier behind the small VAE and behind ``latent``, and of ResNet-50 behind an
untrained ``vae`` of size ``tiny``. All ways take turns. It takes less than ten minutes, says so and ends where there is
no CUDA, and runs the first two ways on the CPU with ``--device cpu``. ``--save`` writes the rows to
``results/measured/cuda-sessions.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from figures import MEASURED, measured_table
from small_vae import CHECKPOINT
from torch import Tensor, nn
from torchvision.models import resnet50

import purifier
from guard_speed import measure
from purifier.classifiers.loading import load_classifier
from purifier.onnx.runtime import CPU, CUDA, loads
from purifier.onnx.torch_export import export_module
from purifier.timing.ways import options_for_turns

BATCHES = (1, 8, 64)
TORCH = "guard, torch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--save", action="store_true", help="write the rows to results/measured")
    given = parser.parse_args()
    if given.device == "cuda":
        if not (torch.cuda.is_available() and loads(CUDA)):
            print("CUDA does not load in torch and ONNX Runtime here, so nothing was run; `purifier doctor` says why")
            return
        if not given.no_tests:
            tests = Path(__file__).parents[1]
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(tests)], cwd=tests.parent, check=True
            )
    rows = [row for make in (grey, descending, colour) for row in rows_of(*make(), given.device)]
    print(measured_table(rows))
    if given.save:
        save(rows)


def grey() -> tuple[str, nn.Module, str, tuple[int, ...]]:
    classifier = load_classifier("demo")
    assert isinstance(classifier, nn.Module)
    return "shipped classifier behind the small VAE", classifier, str(CHECKPOINT), (1, 28, 28)


def descending() -> tuple[str, nn.Module, str, tuple[int, ...]]:
    _, classifier, _, shape = grey()
    return "shipped classifier behind `latent`, 12 steps", classifier, "latent:base=demo-plain,steps=12", shape


def colour() -> tuple[str, nn.Module, str, tuple[int, ...]]:
    filter_ = "vae:image_shape=3x224x224,spatial=true,skip=true,stem=4,depth=1,channels=16,latent=8"
    return "ResNet-50 behind `vae`, `tiny`", resnet50(weights=None).eval(), filter_, (3, 224, 224)


@torch.no_grad()
def rows_of(
    name: str, classifier: nn.Module, filter_: str, shape: tuple[int, ...], device: str
) -> list[dict[str, Any]]:
    """One row for each batch size: ms of each way, and how many times faster than torch the fastest session is."""
    graph = export_module(classifier, [torch.rand(2, *shape)], free=[[0]], inputs=["image"], outputs=["logits"])
    plain = purifier.guard(
        graph, filter_, providers=[CUDA if device == "cuda" else CPU], sess_options=options_for_turns()
    )
    captured = None
    if device == "cuda":
        captured = purifier.guard(graph, filter_, providers=[(CUDA, {"enable_cuda_graph": "1"})])
    module = purifier.guard(classifier.to(device), filter_, check=device == "cpu")
    rows = []
    for batch in BATCHES:
        images = torch.rand(batch, *shape)
        times = measure(ways_of(module, plain, captured, images, device), device)
        fastest = min(seconds for way, seconds in times.items() if way != TORCH)
        ms = {way: round(1e3 * seconds, 3) for way, seconds in times.items()}
        rows.append({"model": name, "batch": batch, **ms, "torch / fastest": round(times[TORCH] / fastest, 2)})
        print(*rows[-1].values(), sep=" | ", file=sys.stderr, flush=True)
    return rows


def ways_of(
    module: purifier.GuardedModule,
    plain: purifier.GuardedSession,
    captured: purifier.GuardedSession | None,
    images: Tensor,
    device: str,
) -> dict[str, Callable[[], object]]:
    moved, array = images.to(device), images.numpy()
    ways: dict[str, Callable[[], object]] = {
        TORCH: lambda: module(moved),
        "session, NumPy": lambda: plain.run(None, {plain.input: array}),
        "session, tensors": lambda: plain(moved),
    }
    return ways if captured is None else {**ways, "session, CUDA graph": lambda: captured(moved)}


def save(rows: list[dict[str, Any]]) -> None:
    """Write the rows, and how they were made."""
    source = {
        "command": ["python tests/benchmarks/cuda_sessions.py --save"],
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU",
        "versions": f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}",
        "date": date.today().isoformat(),
    }
    path = MEASURED / "cuda-sessions.json"
    path.write_text(json.dumps({"source": source, "tables": {"times": rows}}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
