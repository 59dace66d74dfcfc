"""Certificates of a ``certified`` purifier in front of several classifiers, and what its guard costs beside ``demo``.

``python tests/benchmarks/certified_table.py --purifier demo-certified --out table``: the shipped classifier, the
classifiers A to D (trained for two epochs unless their weights are in the folder), one of them as an ONNX file, and all
10,000 test images by bounds. Then the time of each guard in ONNX Runtime, in turns, on one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from published_protocol import CLASSIFIERS, classifier_of, train_classifier

import purifier
from guard_speed import measure
from purifier.classifiers.loading import load_classifier
from purifier.data.loading import load_data
from purifier.onnx.runtime import CPU

EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--purifier", default="demo-certified")
    parser.add_argument("--data", default="fashion-mnist:test")
    parser.add_argument("--out", type=Path, required=True, help="folder for the classifiers' weights")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print_certificates(given.purifier, given.data, given.out)
    print_times(given.purifier, given.out)


def print_certificates(spec: str, data: str, out: Path) -> None:
    model = purifier.load(spec)
    norm, eps = model.config.norm, model.config.eps
    models: dict[str, object] = {"shipped": load_classifier("demo")}
    for name in CLASSIFIERS:
        weights = out / f"{name}.safetensors"
        if not weights.exists():
            train_classifier(name, load_data("fashion-mnist:train"), weights, torch.device("cpu"), epochs=EPOCHS)
        models[name.upper()] = classifier_of(out, name)
    alone = purifier.guard(models["A"], "identity")
    models["A, ONNX"] = purifier.export(alone, out / "a.onnx", image_shape=model.config.image_shape).path
    print(f"| classifier | right, no guard | right, guarded | certified at {norm} {eps:g} | seconds |")
    print("| --- | --- | --- | --- | --- |")
    first = None
    for name, classifier in models.items():
        began = time.perf_counter()
        clean = purifier.audit(purifier.guard(classifier, "identity"), data, attacks=())
        own = next(row.result for row in clean.rows if row.model == "guarded")
        try:
            made = purifier.certify(purifier.guard(classifier, spec), data, eps=eps)
        except purifier.ConfigError as error:
            print(f"| {name} | {own} | {error} | | |", flush=True)
            continue
        seconds = time.perf_counter() - began
        same = first is None or (made.answers, made.radii) == (first.answers, first.radii)
        first = first or made
        figures = f"{made.certified(0)} | {made.certified(eps)}"
        print(f"| {name} | {own} | {figures} | {seconds:.0f}{'' if same else ', not the same images'} |", flush=True)


def print_times(spec: str, out: Path) -> None:
    """Median ms a batch in ONNX Runtime on one thread: the classifier alone, behind ``demo``, and certified."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {}
    for name in ("identity", "demo", spec):
        path = purifier.export(purifier.guard("demo", name), out / "timed.onnx", image_shape=(1, 28, 28)).path
        sessions[name] = onnxruntime.InferenceSession(path, options, providers=[CPU])
    print("| purifier | batch | ms | times `demo` |\n| --- | --- | --- | --- |")
    for size in (1, 32, 256):
        images = load_data("demo").batch(range(size))[0].numpy()

        def call(name: str, images: np.ndarray = images) -> object:
            return sessions[name].run(None, {sessions[name].get_inputs()[0].name: images})

        times = measure({name: lambda name=name: call(name) for name in sessions}, "cpu")
        for name, seconds in times.items():
            print(f"| `{name}` | {size} | {seconds * 1e3:.3f} | {seconds / times['demo']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
