"""Floating-point operations of a step of ``robust``, and what they say of a training on ImageNet with one H100.

``python tests/benchmarks/training_flops.py [--save]`` counts them per image with torch's formulas, for the small VAE at
28x28, whose speed on an H100 was measured, and for purifiers of colour images. The estimate is that the H100 does as
many of them a second as it did there.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from typing import Any

import torch
from cifar_classifier import stock
from figures import MEASURED
from imagenet_photos import lite0
from small_vae import TRAINING
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import purifier
from purifier.assets.classifier import demo_classifier
from purifier.classifiers.pixel_classifier import pixel_classifier
from purifier.contracts.purifier import Purifier, purifiers
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator
from purifier.training.recipe import Batch
from purifier.training.robust import Robust

IMAGES_PER_SECOND = 4600
"""Of the small VAE on an H100, measured: the last row of ``results/measured/training.json``."""
IMAGENET = 1_281_167
"""Training images of ImageNet-1k."""
BATCH = 4


class Counted(TorchDispatchMode):
    """Adds up the operations of what runs within it. FlopCounterMode fails where ``torch.autograd.grad`` is called."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--save", action="store_true", help="write tests/benchmarks/results/measured/training-flops.json"
    )
    given = parser.parse_args()
    vae = purifiers.get("vae")
    colour = (3, 224, 224)
    sized = {
        size: vae.Config(image_shape=colour, skip=True, **vae.Config.suggested(colour, size))
        for size in ("tiny", "small", "base")
    }
    small = vae(vae.Config(image_shape=(1, 28, 28), **TRAINING["config"]))
    cases: dict[tuple[str, str], tuple[Purifier, nn.Module]] = {
        ("small VAE, 28x28", "shipped"): (small, demo_classifier()),
        ("`colour-32`, 32x32", "stock"): (purifier.load("colour-32"), stock()),
        **{
            (f"`{size}` with a skip, 224x224", "EfficientNet-Lite0"): (vae(config), lite0())
            for size, config in sized.items()
        },
    }
    counts = {names: operations(*models) for names, models in cases.items()}
    known = IMAGES_PER_SECOND * next(iter(counts.values()))
    rows: list[dict[str, Any]] = [
        {
            "purifier": name,
            "classifier": classifier,
            "GFLOP an image": f"{count / 1e9:.2f}",
            "images/s": f"{known / count:,.0f}",
            "1,281,167 images": f"{IMAGENET * count / known / 60:.0f} minutes",
        }
        for (name, classifier), count in counts.items()
    ]
    print(f"{known / 1e12:.2f} TFLOP/s", *rows, sep="\n")
    if given.save:
        source = {
            "command": ["python tests/benchmarks/training_flops.py --save"],
            "machine": "operations are counted; only the first row's images/s is measured, on one H100",
            "versions": f"torch {torch.__version__}",
            "date": date.today().isoformat(),
        }
        content = json.dumps({"source": source, "tables": {"table": rows}}, indent=1)
        (MEASURED / "training-flops.json").write_text(content + "\n", encoding="utf-8")


def operations(made: Purifier, classifier: nn.Module) -> float:
    """Floating-point operations of one step of ``robust``, per image."""
    asked = pixel_classifier(classifier.requires_grad_(False), Preprocessing())
    pixels, places = torch.rand(BATCH, *made.config.image_shape), list(range(BATCH))
    labels, generator = torch.zeros(BATCH, dtype=torch.long), SampleGenerator(0, places)
    with Counted() as counted:
        terms = Robust(eps=1 / 255).step(
            made.train(), Batch(pixels, labels, generator, generator, places, asked, done=1.0)
        )
        torch.stack(list(terms.values())).sum().backward()
    return counted.total / BATCH


if __name__ == "__main__":
    main()
