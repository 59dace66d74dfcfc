"""What a guard adds to a classifier's time in ONNX Runtime, and what training it takes, by size and image size.

``python tests/benchmarks/purifier_cost.py [--size tiny ...] [--side 224 ...] [--skip] [--rounds N] [--training]
[--save]`` exports torchvision's ResNet-50 and, if ``efficientnet_lite_pytorch`` is installed, EfficientNet-Lite0, then
new purifiers of each size in front of nothing, and runs them on one thread at batches of 1 and 8. Rounds take turns;
the fastest of each counts. ``--training`` also trains them with the recipe ``robust`` in front of the first of these
classifiers. Times are CPU time of this process, so that other work on the machine hardly shows. ``--save`` writes the
rows for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from figures import MEASURED, measured_table
from torch import nn

from purifier.classifiers.pixel_classifier import pixel_classifier
from purifier.contracts.checkpoint import make
from purifier.contracts.purifier import Purifier, purifiers
from purifier.data.images import ImageData
from purifier.data.pixels import Preprocessing
from purifier.onnx.front import purifier_graph
from purifier.onnx.runtime import CPU
from purifier.seeding import SampleGenerator
from purifier.training.fitting import measured
from purifier.training.optimisation import Follower
from purifier.training.recipe import Batch
from purifier.training.robust import Robust

BATCHES = (1, 8)
TRAINED_AT_ONCE, STEPS = 16, 4
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", help="tiny, small, base; may be repeated")
    parser.add_argument("--side", action="append", type=int, help="of the images, in pixels; may be repeated")
    parser.add_argument("--skip", action="store_true", help="purifiers with skip=true")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--training", action="store_true", help="measure training too")
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {os.cpu_count()} cores, one thread")
    sides, sizes = given.side or (64, 128, 224), given.size or ("tiny", "small", "base")
    tables: dict[str, Rows] = {"guard": []}
    for side in sides:
        tables["guard"] += guard_rows(side, sizes, skip=given.skip, rounds=given.rounds)
    if given.training:
        torch.set_num_threads(1)
        tables["training"] = [training_row(side, size, skip=given.skip) for side in sides for size in sizes]
    print(f"batches of {BATCHES[0]} / {BATCHES[1]}")
    for rows in tables.values():
        print(f"\n{measured_table(rows)}")
    if given.save:
        save(tables)


def guard_rows(side: int, sizes: Sequence[str], *, skip: bool, rounds: int) -> Rows:
    """Time of new purifiers in ONNX Runtime, by itself and as a share of that of each classifier."""
    weights = {}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {name: _classifier(module, side, Path(folder)) for name, module in classifiers().items()}
        names = list(sessions)
        for size in sizes:
            made = new_purifier(side, size, skip=skip)
            weights[size] = sum(weight.numel() for weight in made.parameters())
            graph = purifier_graph(made, Preprocessing(), image_shape=(None, 3, side, side))
            sessions[size] = _session(graph.SerializeToString())
        times = _times(sessions, side, rounds)
    found = []
    for size, count in weights.items():
        row: dict[str, Any] = {"side": side, "size": size, "weights": f"{count / 1e6:.2f}M"}
        row["ms an image"] = " / ".join(f"{times[size][at] * 1e3 / batch:.2f}" for at, batch in enumerate(BATCHES))
        for name in names:
            shares = [times[size][at] / times[name][at] for at in range(len(BATCHES))]
            row[f"of {name}"] = " / ".join(f"{share:.1%}" for share in shares)
        found.append(row)
    return found


def training_row(side: int, size: str, *, skip: bool) -> dict[str, Any]:
    """Speed of training steps, the fastest of a few, and their memory."""
    (name, classifier), *_ = classifiers().items()
    asked = pixel_classifier(classifier.requires_grad_(False), Preprocessing())
    pixels, labels = torch.rand(TRAINED_AT_ONCE, 3, side, side), torch.zeros(TRAINED_AT_ONCE, dtype=torch.long)
    recipe, made, places = Robust(eps=2 / 255), new_purifier(side, size, skip=skip).train(), list(range(len(pixels)))
    follower, fastest = Follower(made, recipe.suggested), float("inf")
    for step in range(STEPS):
        start = time.process_time()
        generator = SampleGenerator(step, places)
        terms = recipe.step(made, Batch(pixels, labels, generator, generator, places, asked, done=1.0))
        follower.backward(torch.stack(list(terms.values())).sum())
        follower.update(0.5)
        fastest = min(fastest, time.process_time() - start)
    images = ImageData("random", (pixels * 255).byte(), labels)
    need = measured(recipe, made, follower, images, asked, torch.device("cpu"))
    assert need is not None
    return {
        "side": side,
        "size": size,
        f"images/s in front of {name}": f"{TRAINED_AT_ONCE / fastest:.1f}",
        "MB an image": f"{need.per_image / 1e6:.1f}",
    }


def save(tables: Mapping[str, Rows]) -> None:
    """Write the rows, and how they were made."""
    source = {
        "command": [" ".join(["python", *sys.argv])],
        "machine": f"one CPU core, {platform.machine()}",
        "versions": f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}",
        "date": date.today().isoformat(),
    }
    content = json.dumps({"source": source, "tables": tables}, indent=1)
    (MEASURED / "purifier-cost.json").write_text(content + "\n", encoding="utf-8")


def classifiers() -> Mapping[str, nn.Module]:
    """The classifiers that are there, with random weights, by name."""
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {}
    if importlib.util.find_spec("efficientnet_lite_pytorch"):
        from efficientnet_lite_pytorch import EfficientNet

        found["EfficientNet-Lite0"] = EfficientNet.from_name("efficientnet-lite0").eval()
    return {**found, "ResNet-50": torchvision.models.resnet50().eval()}


def new_purifier(side: int, size: str, *, skip: bool) -> Purifier:
    """A ``vae`` of this size, untrained."""
    plugin = purifiers.get("vae")
    shape = (3, side, side)
    return make(plugin, plugin.Config(image_shape=shape, skip=skip, **plugin.Config.suggested(shape, size)), "vae")


def _classifier(module: nn.Module, side: int, folder: Path) -> onnxruntime.InferenceSession:
    file = folder / "classifier.onnx"
    images = torch.rand(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = ({0: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(module, (images,), file, dynamo=True, external_data=False, dynamic_shapes=free, verbose=False)
    return _session(file.read_bytes())


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=[CPU])


def _times(sessions: Mapping[str, onnxruntime.InferenceSession], side: int, rounds: int) -> dict[str, list[float]]:
    """The fastest call of each session at each batch size, in seconds."""
    fastest = {name: [float("inf")] * len(BATCHES) for name in sessions}
    for place, batch in enumerate(BATCHES):
        images = np.random.default_rng(0).random((batch, 3, side, side), dtype=np.float32)
        for _ in range(rounds + 1):  # the first is a warm-up, and never the fastest
            for name, session in sessions.items():
                start = time.process_time()
                session.run(None, {session.get_inputs()[0].name: images})
                fastest[name][place] = min(fastest[name][place], time.process_time() - start)
    return fastest


if __name__ == "__main__":
    main()
