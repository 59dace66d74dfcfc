"""How many times as fast as in float32 a step of ``robust`` is in bfloat16, by classifier: what ``auto`` goes by.

``python tests/benchmarks/precision_gain.py`` measures classifiers with random weights, three times each, on this CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cifar_classifier import Stock
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

import purifier
from purifier.data.images import ImageData
from purifier.training import loop, trial

PURIFIERS: Mapping[int, Mapping[str, Any]] = {
    32: {"channels": 32, "latent": 16, "spatial": True, "blocks": 4, "norm": "batch"},
    64: {"skip": True},
    224: {"skip": True},
}
"""Options by side of the images."""


class Measured(Exception):
    """Ends a training before its first step."""


def main() -> None:
    print("| classifier | side | gain of bfloat16, three times |\n| --- | --- | --- |")
    show("Stock", 32, Stock())
    for side in (64, 224):
        show("ResNet-18", side, resnet18())
        show("MobileNetV2", side, mobilenet_v2())


def show(name: str, side: int, classifier: nn.Module) -> None:
    """Print a row of the table."""
    gains: list[float] = []

    def measured(*given: Any) -> float:
        gains.extend(trial.gain_of_bfloat16(*given) for _ in range(3))
        raise Measured

    loop.gain_of_bfloat16 = measured
    images = ImageData("random", torch.randint(256, (16, 3, side, side), dtype=torch.uint8), torch.arange(16) % 10)
    with TemporaryDirectory() as folder:
        try:
            config = PURIFIERS[side]
            out = Path(folder, "measured.safetensors")
            purifier.train("vae", images, out, config=config, classifier=classifier.eval(), recipe="robust:eps=2/255")
        except Measured:
            print(f"| {name} | {side} | {' / '.join(f'{gain:.2f}' for gain in gains)} |", flush=True)


if __name__ == "__main__":
    main()
