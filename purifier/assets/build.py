"""Builds the shipped assets from the real Fashion-MNIST: ``python -m purifier.assets.build``.

``certified`` and ``robust`` take hours of one core each. Both begin with the same first stage, which is trained once if
they are built together.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..atomic import atomic_write
from ..contracts.checkpoint import SHIPPED, load, save, write_tensors
from ..data.images import ImageData
from ..data.loading import load_data
from ..training.loop import train
from ..training.state import log_path
from .classifier import WEIGHTS, FashionClassifier, demo_classifier
from .robust import train_robust, train_stage

ASSETS = ("images", "classifier", "plain", "robust", "certified")
DEMO_IMAGES = 300
PLAIN: Mapping[str, Any] = {"config": {"channels": 16, "depth": 2, "latent": 64}, "epochs": 15}
SELECTED_DATA = "fashion-mnist:train:55000"
"""The training set without the images that recipes and sizes were selected on."""
CERTIFIED: Mapping[str, Any] = {
    "config": {"channels": 48},
    "recipe": "certified:clean=0.1",
    "epochs": 40,
    "batch_size": 256,
}
CERTIFIED_ON: Mapping[str, Any] = {"recipe": "certified:clean=0,warmup=0,ramp=0", "epochs": 12, "batch_size": 256}
"""How it goes on, from the result of ``CERTIFIED``."""


def main() -> None:
    """Build the assets named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=ASSETS, help=f"any of {', '.join(ASSETS)} (default: all)")
    parser.add_argument("--root", help="folder that holds Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=WEIGHTS.parent, help="folder to write to")
    given = parser.parse_args()
    unknown = set(given.what) - set(ASSETS)
    if unknown:
        parser.error(f"no asset {min(unknown)!r}; expected any of {', '.join(ASSETS)}")
    if "images" in given.what:
        write_images(load_data("fashion-mnist:test", root=given.root), given.out / "demo-images.npz")
    if "classifier" in given.what:
        train_classifier(given.out / WEIGHTS.name, root=given.root)
    if "plain" in given.what:
        _train_purifier(
            "vae", given.out / SHIPPED["demo-plain"], load_data("fashion-mnist:train", root=given.root), **PLAIN
        )
    if "certified" in given.what or "robust" in given.what:
        build_bounded(given.what, given.out, load_data(SELECTED_DATA, root=given.root))


def build_bounded(what: Sequence[str], folder: Path, data: ImageData) -> None:
    """Build ``certified`` and ``robust``, as far as asked, from one first stage; both are kept in half precision."""
    classifier = demo_classifier()
    first = folder / "fashion-first.safetensors"
    train_stage("certified", data, first, classifier=classifier, **CERTIFIED)
    if "certified" in what:
        out = folder / SHIPPED["demo-certified"]
        _train_purifier("certified", out, data, classifier=classifier, init=first, **CERTIFIED_ON)
        save(load(out).half(), out)
    if "robust" in what:
        train_robust(folder / SHIPPED["demo"], first, data, classifier)
    first.unlink()
    log_path(first).unlink(missing_ok=True)


def _train_purifier(plugin: str, out: Path, data: ImageData, **options: Any) -> None:
    train(plugin, data, out, **options)
    log_path(out).unlink(missing_ok=True)


def write_images(data: ImageData, path: Path) -> None:
    """Write the first test images, as uint8, with their labels."""
    pixels, labels = data.batch(range(DEMO_IMAGES))
    content = io.BytesIO()
    np.savez_compressed(
        content, images=(pixels * 255).round().to(torch.uint8).numpy(), labels=labels.to(torch.uint8).numpy()
    )
    atomic_write(path, content.getvalue())


def train_classifier(path: Path, *, root: str | None, epochs: int = 12, batch_size: int = 128) -> None:
    """Train on all training images with random flips and shifts; test images are used only at the end."""
    data = load_data("fashion-mnist:train", root=root)
    torch.manual_seed(0)
    classifier = FashionClassifier().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = len(data) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * steps)
    for epoch in range(epochs):
        order = torch.randperm(len(data)).tolist()
        for step in range(steps):
            pixels, labels = data.batch(order[step * batch_size : (step + 1) * batch_size])
            loss = F.cross_entropy(classifier(_augment(pixels)), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        print(f"classifier: epoch {epoch + 1}/{epochs}, last loss {loss.item():.3f}", flush=True)
    print(f"classifier: {_accuracy(classifier.eval(), load_data('fashion-mnist:test', root=root)):.2%} test accuracy")
    write_tensors(classifier.state_dict(), path, {"purifier.assets": {"recipe": "purifier.assets.build", "seed": 0}})


def _augment(pixels: torch.Tensor) -> torch.Tensor:
    flipped = torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels, pixels.flip(3))
    down, right = (int(shift) for shift in torch.randint(-2, 3, (2,)))
    return flipped.roll((down, right), (2, 3))


@torch.no_grad()
def _accuracy(classifier: FashionClassifier, data: ImageData) -> float:
    right = 0
    for start in range(0, len(data), 500):
        pixels, labels = data.batch(range(start, min(start + 500, len(data))))
        right += int((classifier(pixels).argmax(1) == labels).sum())
    return right / len(data)


if __name__ == "__main__":
    main()
