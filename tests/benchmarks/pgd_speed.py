"""How long PGD takes here and in other libraries: the same images, budget, step size and steps, in one run.

``python tests/benchmarks/pgd_speed.py [--device cuda] [--steps 40] [--rounds 7]`` prints median seconds, the share of
images still right after each attack, and the time of the others divided by ours. Ours stops work on an image once it is
fooled, so there are two budgets: the usual one, and one so small that nearly all images need every step.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.loading import load_classifier
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.contracts.purifier import purifiers
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator

BUDGETS = {"usual": 0.1, "images stay": 0.002}
IMAGES = 256

Way = Callable[[Tensor, Tensor], Tensor]
"""Images (N, C, H, W) and labels (N,) -> adversarial images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each library")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of images")
    given = parser.parse_args()
    classifier = load_classifier("demo")
    assert isinstance(classifier, nn.Module)
    classifier = classifier.to(given.device).eval().requires_grad_(False)
    pixels, labels = (part.to(given.device) for part in load_data("demo").batch(range(given.images)))
    print(f"torch {torch.__version__} on {given.device}, {torch.get_num_threads()} threads, {given.images} images")
    for budget, eps in BUDGETS.items():
        ways = {
            "purifier": ours(classifier, eps, given.steps),
            "torchattacks": torchattacks(classifier, eps, given.steps),
            "ART": art(classifier, eps, given.steps),
        }
        medians, standing = measure(ways, classifier, pixels, labels, given.rounds)
        for way, median in medians.items():
            print(
                f"linf {eps:5.3f} ({budget:11s})  {way:12s} {median:8.3f} s  {standing[way]:6.1%} stay right  "
                f"{median / medians['purifier']:5.2f}x the time of purifier"
            )


def ours(classifier: nn.Module, eps: float, steps: int) -> Way:
    attack = read_attack(f"pgd:steps={steps}").attack
    pixel_classifier, threat = TorchPixelClassifier(classifier, Preprocessing()), Threat("linf", eps)
    identity = purifiers.get("identity")
    same = identity(identity.Config())

    def run(pixels: Tensor, labels: Tensor) -> Tensor:
        indices = range(len(pixels))
        target = Target(pixel_classifier, same, "exact", SampleGenerator(1, indices))
        return attack.perturb(target, pixels, labels, threat, SampleGenerator(0, indices))

    return run


def torchattacks(classifier: nn.Module, eps: float, steps: int) -> Way:
    library = peer("torchattacks", "torchattacks --no-deps")
    return library.PGD(classifier, eps=eps, alpha=2.5 * eps / steps, steps=steps)


def art(classifier: nn.Module, eps: float, steps: int) -> Way:
    evasion = peer("art.attacks.evasion", "adversarial-robustness-toolbox")
    estimators = peer("art.estimators.classification", "adversarial-robustness-toolbox")

    def run(pixels: Tensor, labels: Tensor) -> Tensor:
        wrapped = estimators.PyTorchClassifier(
            classifier,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(pixels.shape[1:]),
            nb_classes=10,
            clip_values=(0, 1),
            device_type="gpu" if pixels.is_cuda else "cpu",
        )
        attack = evasion.ProjectedGradientDescent(
            wrapped,
            eps=eps,
            eps_step=2.5 * eps / steps,
            max_iter=steps,
            num_random_init=1,
            batch_size=len(pixels),
            verbose=False,
        )
        found = attack.generate(pixels.cpu().numpy(), np.eye(10, dtype=np.float32)[labels.cpu().numpy()])
        return torch.from_numpy(found).to(pixels.device)

    return run


def peer(module: str, package: str) -> ModuleType:
    """Import another library, or exit and say what to install."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(f"cannot import {module} ({error}): pip install {package}") from error


def measure(
    ways: dict[str, Way], classifier: nn.Module, pixels: Tensor, labels: Tensor, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each way and the share of images still right; the ways take turns, the first is a warm-up."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    standing: dict[str, float] = {}
    for turn in range(rounds + 1):
        for way, call in ways.items():
            began = time.perf_counter()
            attacked = call(pixels, labels)
            if pixels.is_cuda:
                torch.cuda.synchronize()
            if turn:
                found[way].append(time.perf_counter() - began)
            with torch.no_grad():
                standing[way] = (classifier(attacked).argmax(1) == labels).double().mean().item()
    return {way: statistics.median(values) for way, values in found.items()}, standing


if __name__ == "__main__":
    main()
