"""What looking for bad images costs in a guarded graph: the same graph with and without, in one run.

``python tests/benchmarks/bad_image_speed.py [--rounds 200] [--save]`` prints medians in ms per batch and their ratio.
Both graphs run in plain ONNX Runtime sessions with one thread, and take turns. ``--save`` also writes the rows to
``results/measured/bad-image-speed.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from datetime import date
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import torch
from figures import MEASURED, measured_table
from soak import one_thread
from torch import nn

import purifier
from purifier.classifiers.loading import load_classifier
from purifier.onnx import guarded
from purifier.onnx.runtime import CPU

BATCHES = (1, 32)
PURIFIERS = ("identity", "blur", "demo-plain")
kept_graph = guarded.kept_graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    classifier = load_classifier("demo")
    assert isinstance(classifier, nn.Module)
    model = as_onnx(classifier)
    rows = []
    for spec in PURIFIERS:
        with_check = opened(model, spec)
        with mock.patch.object(guarded, "kept_graph", unchecked):
            without = opened(model, spec)
        for size in BATCHES:
            images = np.random.default_rng(0).uniform(size=(size, 1, 28, 28)).astype(np.float32)
            spoilt = images.copy()
            spoilt[0, 0, 0, 0] = np.nan
            if not np.isnan(with_check.run(["logits"], {"x": spoilt})[0][0]).all():
                raise AssertionError("expected NaN for a bad image from the graph that looks for it")
            times = medians((with_check, without), images, given.rounds)
            rows.append(
                {
                    "purifier": f"`{spec}`",
                    "batch": size,
                    "without": f"{times[1]:.3f}",
                    "with": f"{times[0]:.3f}",
                    "ratio": f"{times[0] / times[1]:.2f}",
                }
            )
    print(measured_table(rows))
    if given.save:
        save(rows, given.rounds)


def unchecked(*values: Any, **options: Any) -> Any:
    """A purifier's graph as it would be if it did not look for bad images."""
    return kept_graph(*values, **{**options, "checked": False})


def as_onnx(net: nn.Module) -> Any:
    made = torch.onnx.export(
        net,
        (torch.rand(2, 1, 28, 28),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        input_names=["x"],
        output_names=["logits"],
        verbose=False,
    )
    assert made is not None
    return made.model_proto


def opened(model: Any, spec: str) -> onnxruntime.InferenceSession:
    graph = purifier.guard(model, spec, cache=False).model
    return onnxruntime.InferenceSession(graph.SerializeToString(), one_thread(), providers=[CPU])


def medians(sessions: Any, images: Any, rounds: int) -> list[float]:
    """Median ms of each; they take turns."""
    found: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for session, times in zip(sessions, found, strict=True):
            began = time.perf_counter()
            session.run(["logits"], {"x": images})
            times.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(times[3:]) for times in found]


def save(rows: list[dict[str, Any]], rounds: int) -> None:
    source = {
        "command": ["python tests/benchmarks/bad_image_speed.py --save"],
        "machine": f"one CPU core, {platform.machine()}",
        "versions": f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "note": f"Medians of {rounds} runs that take turns.",
    }
    text = json.dumps({"source": source, "tables": {"table": rows}}, indent=1) + "\n"
    (MEASURED / "bad-image-speed.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
