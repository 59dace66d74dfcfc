"""How many times as fast as in float32 a step of ``robust`` is in bfloat16, by classifier, and what ``auto`` chooses.

``python tests/benchmarks/precision_gain.py`` times steps with eight images, in turn, behind classifiers with random
weights, on this CPU.
"""

from __future__ import annotations

import contextlib
import math
import time
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
IMAGES, TURNS = 8, 4


class Measured(Exception):
    """Ends a training before its first step."""


def main() -> None:
    print(f"a convolution: {trial.gain_of_convolution():.2f}\n")
    print("| classifier | side | gain of bfloat16 | auto |\n| --- | --- | --- | --- |")
    show("Stock", 32, Stock())
    for side in (64, 224):
        show("ResNet-18", side, resnet18())
        show("MobileNetV2", side, mobilenet_v2())


def show(name: str, side: int, classifier: nn.Module) -> None:
    """Print a row of the table."""

    def measured(*given: Any) -> bool:
        step, seconds = trial.trial(*given), {False: math.inf, True: math.inf}
        for _ in range(TURNS):
            for enabled in seconds:
                start = time.process_time()
                step(IMAGES, torch.autocast("cpu", torch.bfloat16, enabled=enabled))
                seconds[enabled] = min(seconds[enabled], time.process_time() - start)
        auto = "bfloat16" if trial.gains_by_bfloat16(*given) else "float32"
        print(f"| {name} | {side} | {seconds[False] / seconds[True]:.2f} | {auto} |", flush=True)
        raise Measured

    vars(loop)["gains_by_bfloat16"] = measured
    images = ImageData("random", torch.randint(256, (16, 3, side, side), dtype=torch.uint8), torch.arange(16) % 10)
    with TemporaryDirectory() as folder, contextlib.suppress(Measured):
        config, out = PURIFIERS[side], Path(folder, "measured.safetensors")
        purifier.train("vae", images, out, config=config, classifier=classifier.eval(), recipe="robust:eps=2/255")


if __name__ == "__main__":
    main()
