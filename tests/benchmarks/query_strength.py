"""How near attacks come with equal means: `hopskipjump` beside foolbox's and ART's, `ead` beside two FABs.

``python tests/benchmarks/query_strength.py labels [--classifier hardened] [--queries 1000 5000]`` counts queries:
each library attacks one image at a time, and of a library that does not stop by itself the nearest misclassified image
among its first queries counts. ``... l1`` compares median l1 distances; adv-lib's FAB is left out if adv-lib, an
environment of its own, cannot be imported. Both print a table of medians over the images, with the number of images
for which nothing was found; such a distance counts as infinite. ``net`` and ``hardened`` are the tests' networks.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from markdown_table import markdown_table
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
from purifier.vocabulary import Norm, Route

NEVER = 1e-6
"""A budget within which nothing is found, so that attacks go on to the smallest distance."""


class OutOfQueriesError(Exception):
    """Ends a library's attack."""


class Recorder(nn.Module):
    """A classifier that notes the nearest misclassified variant of one image within each number of queries."""

    def __init__(self, classifier: nn.Module, image: Tensor, label: Tensor, threat: Threat, budgets: list[int]) -> None:
        super().__init__()
        self._classifier, self._image, self._label, self._threat = classifier, image, label, threat
        self.nearest = dict.fromkeys(budgets, torch.inf)
        self._count = 0
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.detach().float()
        if self._count >= max(self.nearest):
            raise OutOfQueriesError
        logits: Tensor = self._classifier(pixels)
        distance = self._threat.distance(pixels, self._image.expand_as(pixels))
        distance = torch.where(logits.argmax(1) != self._label, distance, torch.inf)
        for budget, best in self.nearest.items():
            within = distance[: max(0, budget - self._count)]
            self.nearest[budget] = min([best, *within.tolist()])
        self._count += len(pixels)
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("labels", "l1"))
    parser.add_argument("--classifier", choices=("demo", "net", "hardened"), default="hardened")
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--norms", nargs="+", choices=("l2", "linf"), default=["l2", "linf"], help="of labels")
    given = parser.parse_args()
    torch.set_num_threads(1)
    classifier = load(given.classifier)
    pixels, labels = load_data("fashion-mnist:test:400").batch(range(400))
    right = classifier(pixels).argmax(1) == labels
    images = pixels[right][: given.images], labels[right][: given.images]
    print(f"torch {torch.__version__}, {given.images} test images, classifier {given.classifier}")
    table = (
        l1_table(classifier, *images)
        if given.what == "l1"
        else labels_table(classifier, *images, given.queries, given.norms)
    )
    print(table)


def load(name: str) -> nn.Module:
    if name == "demo":
        classifier = load_classifier("demo")
        assert isinstance(classifier, nn.Module)
    else:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        classifier = importlib.import_module("nets").trained(name)
    return classifier.eval().requires_grad_(False)


def labels_table(
    classifier: nn.Module, pixels: Tensor, labels: Tensor, budgets: list[int], norms: Sequence[Norm]
) -> str:
    rows: list[list[str]] = []
    for norm in norms:
        threat = Threat(norm, NEVER)
        for queries in budgets:
            found = ours(f"hopskipjump:queries={queries}", classifier, pixels, labels, threat)
            rows.append(
                [norm, f"{queries:,}", "purifier", *summary(reached(classifier, found, pixels, labels, threat))]
            )
        for library, attack in (("foolbox", foolbox), ("ART", art)):
            nearest = [
                recorded(attack, Recorder(classifier, image[None], label, threat, budgets), image, label, norm)
                for image, label in zip(pixels, labels, strict=True)
            ]
            for queries in budgets:
                rows.append(
                    [norm, f"{queries:,}", library, *summary(torch.tensor([each[queries] for each in nearest]))]
                )
    return markdown_table(["norm", "queries", "library", "median distance", "not fooled"], sorted(rows, key=order))


def order(row: Sequence[str]) -> tuple[str, int]:
    return row[0], int(row[1].replace(",", ""))


def recorded(
    attack: Callable[[Recorder, Tensor, Tensor, str], None], recorder: Recorder, image: Tensor, label: Tensor, norm: str
) -> dict[int, float]:
    torch.manual_seed(0)
    np.random.seed(0)
    with contextlib.suppress(OutOfQueriesError):
        attack(recorder, image[None], label[None], norm)
    return recorder.nearest


def foolbox(recorder: Recorder, image: Tensor, label: Tensor, norm: str) -> None:
    library = importlib.import_module("foolbox")
    attack = library.attacks.HopSkipJumpAttack(steps=1000, constraint=norm)
    try:
        attack.run(library.PyTorchModel(recorder, bounds=(0, 1)), image, label)
    except ValueError as error:
        if "init_attack failed" not in str(error):
            raise


def art(recorder: Recorder, image: Tensor, label: Tensor, norm: str) -> None:
    evasion = importlib.import_module("art.attacks.evasion")
    estimators = importlib.import_module("art.estimators.classification")
    wrapped = estimators.PyTorchClassifier(
        recorder,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(image.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    attack = evasion.HopSkipJump(wrapped, norm=2 if norm == "l2" else np.inf, max_iter=1000, verbose=False)
    attack.generate(image.numpy(), np.eye(10, dtype=np.float32)[label.numpy()])


def l1_table(classifier: nn.Module, pixels: Tensor, labels: Tensor) -> str:
    threat = Threat("l1", NEVER)
    found = {
        spec: ours(spec, classifier, pixels, labels, threat)
        for spec in ("ead:minimal=true", "ead:minimal=true,squared=1", "fab-t:minimal=true")
    }
    try:
        found["FAB of adv-lib"] = importlib.import_module("adv_lib.attacks").fab(
            classifier, pixels, labels, norm=1, n_iter=100
        )
    except ImportError as error:
        print(f"without adv-lib: {error}")
    rows = (
        [f"`{name}`", *summary(reached(classifier, images, pixels, labels, threat))] for name, images in found.items()
    )
    return markdown_table(["attack", "median l1 distance", "not fooled"], rows)


def ours(spec: str, classifier: nn.Module, pixels: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    attack, indices = read_attack(spec).attack, range(len(pixels))
    identity = purifiers.get("identity")
    route: Route = "none" if attack.needs == "labels" else "exact"
    pixel_classifier = TorchPixelClassifier(classifier, Preprocessing())
    target = Target(pixel_classifier, identity(identity.Config()), route, SampleGenerator(1, indices))
    return attack.perturb(target, pixels, labels, threat, SampleGenerator(0, indices))


def reached(classifier: nn.Module, found: Tensor, pixels: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    return torch.where(classifier(found).argmax(1) != labels, threat.distance(found, pixels), torch.inf)


def summary(distances: Tensor) -> Iterable[str]:
    return f"{distances.median():.4f}", f"{distances.isinf().sum()}"


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
