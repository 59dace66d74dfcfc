"""Train a purifier with the recipe ``robust`` for a frozen CIFAR-10 classifier, and what to compare it with.

``python tests/benchmarks/cifar_training.py --out cifar --classifier stock --weights stock.safetensors
--data folder:cifar/train [--which yardstick] [--recipe robust:eps=8/255] [--epochs N] [--set channels=32 ...]``
trains in front of ``stock``, ``resnet20`` or ``resnet56`` on all but the last 5,000 of the shuffled images, and goes on
where it was stopped. ``yardstick`` is the classifier's architecture, from scratch, with the same loop, recipe and
images; ``larger`` the stock architecture with as many weights as classifier and purifier. Their weights are also
written alone, to ``OUT/yardstick-weights.safetensors`` for ``robust_table.py``, and a purifier in half precision too,
to ``OUT/purifier-half.safetensors``. ``--which encoder`` trains the purifier's encoder as a classifier, ``--which
decoder --start OUT/encoder.safetensors`` what else the purifier has, and ``--start OUT/decoder.safetensors`` all of it,
with the same options. ``--start`` also goes on from a checkpoint of the same kind. With several ``--classifier`` and
``--weights`` each image of a batch is answered by one of them, in turn; with ``--vary`` they see it moved, mirrored,
blurred and with noise, so that what the purifier writes does not suit these few alone. It prints images per second and
the speed of matrix multiplication, and the check on training images; ``--check`` attacks held-back images with apgd-ce
instead of training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar_classifier import HELD_BACK, PATCHES, Stock, larger, write
from cifar_resnet import ResNet
from cifar_variety import pooled, strided
from robust_training import matmul_rate
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur
from yardstick import CLASSES, Reader, Written, register

import purifier
from purifier.classifiers.weights import load_weights, read_weights
from purifier.contracts.purifier import purifiers
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.specs import build, number, split_spec
from purifier.torch_tools.memory import keep_freed_memory
from purifier.training.state import log_path, state_path

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSIFIERS: Mapping[str, tuple[Callable[[], nn.Module], Preprocessing]] = {
    "stock": (Stock, Preprocessing()),
    "resnet20": (partial(ResNet, 20), IMAGENET),
    "resnet56": (partial(ResNet, 56), IMAGENET),
    "pooled": (pooled, Preprocessing()),
    "strided": (strided, Preprocessing()),
}
FROZEN = (*CLASSIFIERS, "encoder")
"""What a purifier can be trained in front of: these, and an encoder that was trained alone."""
PURIFIERS = {"decoder": "held", "purifier": "vae"}
"""The plugin of each checkpoint that is a purifier."""
WHICH = (*PURIFIERS, "encoder", "yardstick", "larger")
PASSED_ON = ("recipe", "epochs", "lr", "augment", "precision", "device")
BLURRED, NOISE = 0.4, 0.2
"""With ``--vary``: the share of batches that are blurred, and the largest standard deviation of the noise."""
CHECKED = 500
"""Held-back images that ``--check`` attacks."""


class Normalised(nn.Module):
    """A classifier that normalises pixels itself."""

    def __init__(self, classifier: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.classifier, self.preprocessing = classifier, preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.preprocessing.to_classifier(pixels))
        return logits


class Scored(nn.Module):
    """The encoder of a ``vae`` without its last layer, as a classifier of pixels in [0, 1]."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        *layers, last = new_vae("vae", config).encoder.layers
        self.layers = nn.Sequential(*layers)
        self.scores = nn.Linear(last.in_channels, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.layers(pixels * 2 - 1).mean((2, 3)))
        return scores


class Held:
    """Mixed into a ``vae``: an encoder of which only the last layer learns."""

    encoder: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # that of the purifier
        self.encoder.layers[:-1].requires_grad_(False)


class InTurn(nn.Module):
    """Classifiers that answer the images of a batch in turn: of three, the first answers images 0, 3, 6, ..."""

    def __init__(self, classifiers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, pixels: Tensor) -> Tensor:
        count = len(self.classifiers)
        turns = torch.arange(len(pixels), device=pixels.device) % count
        asked = list(self.classifiers)[: len(pixels)]
        parts = [classifier(pixels[turn::count]) for turn, classifier in enumerate(asked)]
        return torch.cat(parts)[turns.argsort(stable=True).argsort()]


class Varied(nn.Module):
    """A classifier that sees each batch moved by up to two pixels, perhaps mirrored and blurred, and with noise."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        blurs, mirrors, down, right = (torch.rand(4) * torch.tensor([1, 1, 5, 5])).tolist()
        if blurs < BLURRED:
            pixels = gaussian_blur(pixels, [3, 3], [0.8, 0.8])
        strength = NOISE * torch.rand(len(pixels), 1, 1, 1, device=pixels.device)
        pixels = (pixels + strength * torch.randn_like(pixels)).clamp(0, 1)
        height, width = pixels.shape[2:]
        pixels = F.pad(pixels, (2, 2, 2, 2), mode="reflect")[..., int(down) :, int(right) :][..., :height, :width]
        logits: Tensor = self.classifier(pixels.flip(3) if mirrors < 0.5 else pixels)
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--classifier", choices=FROZEN, action="append", required=True, help="may be repeated")
    parser.add_argument("--weights", type=Path, action="append", required=True, help="of each classifier, in order")
    parser.add_argument("--data", default="folder:cifar/train", help="DATA spec of the training images")
    parser.add_argument("--which", choices=WHICH, default="purifier")
    parser.add_argument("--recipe", default="robust:eps=8/255")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="option of the purifier")
    parser.add_argument("--start", type=Path, help="checkpoint of an encoder, decoder or purifier to start from")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--augment", default="crop")
    parser.add_argument("--precision", help="bfloat16 or float32; default: what the package chooses")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--vary", action="store_true", help="show the classifiers varied images")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True)
    keep_freed_memory()
    path = given.out / f"{given.which}.safetensors"
    chosen, held_back = split(load_data(given.data))
    config = split_spec(f"vae:{','.join(given.set)}")[1] if given.set else {}
    register("written", partial(new_classifier, given, config, chosen))
    purifiers.register("held", type("Held", (Held, purifiers.get("vae")), {}))
    frozen: nn.Module = InTurn(map(frozen_classifier, given.classifier, given.weights))
    if given.check:
        classifier = frozen if given.which in PURIFIERS else Reader(frozen)
        check(purifier.load(path), classifier, held_back, given.recipe, given.device)
        return
    if given.vary:
        frozen = Varied(frozen)
    print(
        f"torch {torch.__version__}, one core multiplies matrices at {matmul_rate(torch.float32):.0f} GFLOP/s",
        flush=True,
    )
    options: dict[str, Any] = {name: getattr(given, name) for name in PASSED_ON}
    options |= {"resume": state_path(path).exists(), "overwrite": not state_path(path).exists()}
    if given.which in PURIFIERS:
        plugin = PURIFIERS[given.which]
        if given.start:
            options["init"] = path.with_stem(f"{given.which}-start")
            torch.manual_seed(0)  # a run that goes on must find the same checkpoint
            purifier.save(begun(plugin, config, purifier.load(given.start)), options["init"])
        made = purifier.train(plugin, chosen, path, classifier=frozen, config=config, **options)
        if given.which == "purifier":
            purifier.save(made.half(), path.with_stem("purifier-half"))
    else:
        made = purifier.train("written", chosen, path, classifier=Reader(frozen), init=given.start, **options)
        if isinstance(made, Written) and isinstance(made.classifier, Normalised):
            write(path.with_stem(f"{given.which}-weights"), made.classifier.classifier.state_dict())
    entries = [json.loads(line) for line in log_path(path).read_text().splitlines()[1:]]
    minutes = sum(entry["seconds"] for entry in entries) / 60
    figures = ", ".join(f"{name} {value:.1%}" for name, value in entries[-1]["figures"].items() if value <= 1)
    speed = sum(entry["images_per_second"] for entry in entries) / len(entries)
    print(f"{given.which}: {len(entries)} epochs in {minutes:.1f} minutes, {speed:.0f} images/s; {figures}")


def new_classifier(given: argparse.Namespace, config: Mapping[str, Any], chosen: ImageData) -> nn.Module:
    """The classifier that is to be trained, or that a purifier starts from."""
    if given.which in ("encoder", *PURIFIERS):
        return Scored(config)
    make, preprocessing = CLASSIFIERS[given.classifier[0]] if given.which == "yardstick" else (larger, Preprocessing())
    made = make()
    if isinstance(made, Stock):
        # All layers learn here: what enlarges faint detail may not suit a classifier that is to be robust.
        made.whiten_patches(chosen.batch(range(min(PATCHES, len(chosen))))[0])
        made.whiten.weight.requires_grad_(True)
    return Normalised(made, preprocessing)


def new_vae(plugin: str, config: Mapping[str, Any]) -> Any:
    """A new ``vae``, or one with the encoder ``held``, for 3x32x32 pixels."""
    made: Any = purifiers.get(plugin)
    return made(build(made.Config, {"image_shape": [3, 32, 32], **config}, what=plugin))


def begun(plugin: str, config: Mapping[str, Any], start: Any) -> purifier.Purifier:
    """A new purifier with the weights of another, or with the layers of an encoder that was trained alone."""
    made = new_vae(plugin, config)
    if isinstance(start, Written):
        learned = start.classifier.layers
        made.encoder.layers[: len(learned)].load_state_dict(learned.state_dict())
    else:
        made.load_state_dict(start.state_dict())
    assert isinstance(made, purifier.Purifier)
    return made


def frozen_classifier(name: str, weights: Path) -> nn.Module:
    """A frozen classifier of pixels in [0, 1]."""
    if name == "encoder":
        made = purifier.load(weights)
        assert isinstance(made, Written)
        return made.classifier.eval().requires_grad_(False)
    make, preprocessing = CLASSIFIERS[name]
    classifier = make()
    load_weights(classifier, read_weights(weights), weights)
    return Normalised(classifier, preprocessing).eval().requires_grad_(False)


def split(data: ImageData) -> tuple[ImageData, ImageData]:
    """The images to learn from, and those held back, in memory as bytes."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    parts = [order[start : start + 1000] for start in range(0, len(order), 1000)]
    pixels, labels = zip(*data.batches(parts), strict=True)
    images = torch.cat([(part * 255).round().to(torch.uint8) for part in pixels])
    found = torch.cat(labels)
    cut = len(order) - HELD_BACK
    return (
        ImageData(f"{data.name}, all but {HELD_BACK}", images[:cut], found[:cut]),
        ImageData(f"{data.name}, the last {HELD_BACK}", images[cut:], found[cut:]),
    )


def check(made: purifier.Purifier, classifier: nn.Module, held_back: ImageData, recipe: str, device: str) -> None:
    """Attack a checkpoint with apgd-ce on the exact route; print clean and attacked rates."""
    threat = split_spec(recipe)[1]
    guarded = purifier.guard(classifier, made)
    data = held_back.batch(held_back.spread(CHECKED))
    report = purifier.audit(
        guarded,
        data,
        attacks=["apgd-ce:steps=20"],
        eps=number(threat.get("eps", "8/255")),
        norm=threat.get("norm", "linf"),
        routes=["exact"],
        batch_size=CHECKED,
        device=device,
    )
    for row in report.rows:
        if row.result is not None:
            print(f"{row.model:>10} {row.attack:>20} {row.route or '':>8} {row.result.share:.1%}")


if __name__ == "__main__":
    main()
