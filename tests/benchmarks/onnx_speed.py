"""Purifiers alone, eager torch against onnxruntime in one run; latent optimisation unrolled and as a Loop.

``python tests/benchmarks/onnx_speed.py [--purifier SPEC ...] [--device cuda]`` prints size and export time of each
graph, medians in ms per batch, ratios, and the largest difference from torch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

import purifier
from guard_speed import measure
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.onnx.front import purifier_graph
from purifier.onnx.runtime import CPU, CUDA, open_session
from purifier.timing.ways import options_for_turns

DEFAULT = ("demo", "demo-plain", "latent:base=demo-plain", "latent:base=demo-plain,loop=true")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--purifier", action="append", help="PURIFIER spec; may be repeated")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    data = load_data("demo")
    print(f"torch {torch.__version__} on {given.device}, {torch.get_num_threads()} threads")
    for spec in given.purifier or DEFAULT:
        chosen = purifier.load(spec)
        began = time.perf_counter()
        graph = purifier_graph(chosen, Preprocessing(), image_shape=(None, *data.shape))
        seconds = time.perf_counter() - began
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "purifier.onnx"
            path.write_bytes(graph.SerializeToString())
            session = open_session(
                path, providers=[CUDA if given.device.startswith("cuda") else CPU], options=options_for_turns()
            )
        print(f"{spec}: {graph.ByteSize() / 1e6:.2f} MB, {len(graph.graph.node)} nodes, exported in {seconds:.0f} s")
        chosen.to(given.device)
        for size in (1, 32, 256):
            pixels = data.batch(range(size))[0]
            moved, feed = pixels.to(given.device), {"image": pixels.numpy()}
            ways = {
                "torch": lambda chosen=chosen, moved=moved: chosen.purify(moved),
                "onnxruntime": lambda session=session, feed=feed: session.run(None, feed),
            }
            times = measure(ways, given.device)
            error = (torch.from_numpy(session.run(None, feed)[0]) - chosen.purify(moved).cpu()).abs().max()
            print(
                f"  batch {size:4d}  torch {times['torch'] * 1e3:9.2f} ms   "
                f"onnxruntime {times['onnxruntime'] * 1e3:9.2f} ms   "
                f"{times['torch'] / times['onnxruntime']:5.2f}x as fast   difference {error:.0e}"
            )


if __name__ == "__main__":
    main()
