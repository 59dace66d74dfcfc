"""What a guard adds to a classifier's time in ONNX Runtime, by size of the purifier and of the images.

``python tests/benchmarks/purifier_cost.py [--size tiny ...] [--side 224 ...] [--skip] [--rounds N]`` exports
torchvision's ResNet-50 and, if ``efficientnet_lite_pytorch`` is installed, EfficientNet-Lite0, then new purifiers of
each size in front of nothing, and runs them on one thread at batches of 1 and 8. Rounds take turns; the fastest of each
counts, in CPU time of this process, so that other work on the machine hardly shows.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision
from markdown_table import markdown_table
from torch import nn

from purifier.contracts.checkpoint import make
from purifier.contracts.purifier import Purifier, purifiers
from purifier.data.pixels import Preprocessing
from purifier.onnx.front import purifier_graph
from purifier.onnx.runtime import CPU

BATCHES = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", help="tiny, small, base; may be repeated")
    parser.add_argument("--side", action="append", type=int, help="of the images, in pixels; may be repeated")
    parser.add_argument("--skip", action="store_true", help="purifiers with skip=true")
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {os.cpu_count()} cores, one thread")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in given.side or (64, 128, 224):
            sessions = {name: _classifier(module, side, Path(folder)) for name, module in classifiers().items()}
            weights = {}
            for size in given.size or ("tiny", "small", "base"):
                made = new_purifier(side, size, skip=given.skip)
                weights[size] = sum(weight.numel() for weight in made.parameters())
                graph = purifier_graph(made, Preprocessing(), image_shape=(None, 3, side, side))
                sessions[size] = _session(graph.SerializeToString())
            times = _times(sessions, side, given.rounds)
            for size, count in weights.items():
                shares = [
                    [f"{times[size][at] / times[name][at]:.1%}" for at in range(len(BATCHES))] for name in classifiers()
                ]
                own = [f"{times[size][at] * 1e3 / batch:.2f}" for at, batch in enumerate(BATCHES)]
                rows.append([str(side), size, f"{count / 1e6:.2f}M", " / ".join(own), *map(" / ".join, shares)])
    head = ["pixels a side", "size", "weights", "ms an image", *(f"of {name}" for name in classifiers())]
    print(f"batches of {BATCHES[0]} / {BATCHES[1]}\n\n{markdown_table(head, rows)}")


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
