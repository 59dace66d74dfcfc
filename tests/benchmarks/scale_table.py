"""How many images each attack fools if all logits of the classifier are multiplied by a factor, or shifted.

``python tests/benchmarks/scale_table.py [--count 200] [--scale raw] [--only ATTACK,...]`` runs every built-in
attack, most with a small budget, on the classifier ``demo`` alone (``joint``, ``joint-square`` and ``latent-match``,
which need a purifier, behind ``demo-plain``). The images are classified correctly to begin with. ``--scale raw`` shows
the attacks the classifier's own logits; those without the option ``scale`` are left out. It prints JSON rows for
``results/measured/scale.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import warnings

import torch
from torch import Tensor, nn

import purifier
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.guards.module import GuardedModule
from purifier.rejection.policy import Rejection
from purifier.seeding import SampleGenerator
from purifier.vocabulary import Route

CHANGES = {
    "x 1e-4": (1e-4, 0.0),
    "x 0.01": (1e-2, 0.0),
    "unchanged": (1.0, 0.0),
    "x 100": (1e2, 0.0),
    "x 1e4": (1e4, 0.0),
    "+ 100": (1.0, 100.0),
}
LINF, L2, L1 = Threat("linf", 0.03), Threat("l2", 0.5), Threat("l1", 5.0)
ATTACKS = (
    ("fgsm", LINF),
    ("rfgsm", LINF),
    ("pgd:steps=10", LINF),
    ("bim:steps=5", LINF),
    ("mim:steps=5", LINF),
    ("apgd-ce:steps=6", LINF),
    ("apgd-dlr:steps=6", LINF),
    ("apgd-t:steps=6,targets=2", LINF),
    ("fab-t:steps=10,targets=3", LINF),
    ("deepfool:steps=5,candidates=3", LINF),
    ("fmn:steps=6", LINF),
    ("fmn:steps=6,loss=ce", LINF),
    ("cw:steps=10,searches=3,initial_const=1", L2),
    ("ead:steps=10,searches=3", L1),
    ("square:queries=60", Threat("linf", 0.06)),
    ("spsa:steps=4,samples=12,lr=0.3", Threat("linf", 0.06)),
    ("hopskipjump:queries=100,init_samples=20", Threat("linf", 0.1)),
    ("noise:draws=4", Threat("linf", 0.3)),
    ("transfer:attacks=fgsm+mim:steps=5", LINF),
    ("joint:steps=6", LINF),
    ("joint-square:queries=60", Threat("linf", 0.1)),
    ("latent-match:steps=8,guide_steps=15", Threat("linf", 0.1)),
    ("foolbox:LinfPGD,steps=5", LINF),
    ("torchattacks:PGD,steps=5", LINF),
    ("art:ProjectedGradientDescent,max_iter=5", LINF),
    ("pyautoattack:apgd-ce,n_iter=5,n_restarts=1", LINF),
)
BEHIND_A_PURIFIER = ("joint", "latent-match")
ROUTES: dict[str, Route] = {"gradient": "exact", "latent": "exact", "scores": "none", "labels": "none"}


class Changed(nn.Module):
    """The same decisions from other logits."""

    def __init__(self, module: nn.Module, factor: float, offset: float) -> None:
        super().__init__()
        self.module, self.factor, self.offset = module, factor, offset

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.module(pixels)
        return logits * self.factor + self.offset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="number of images")
    parser.add_argument("--scale", default="normalised", choices=("normalised", "raw"))
    parser.add_argument("--only", default="", help="names of attacks, separated by commas; default: all")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    pixels, labels = load_data("fashion-mnist:test").batch(range(2 * given.count))
    guards = {}
    for name in ("identity", "demo-plain"):
        guards[name] = purifier.guard("demo", name)
        with torch.no_grad():
            right = guards[name](pixels).argmax(1) == labels
        pixels, labels = pixels[right], labels[right]
    pixels, labels = pixels[: given.count], labels[: given.count]
    for spec, threat in ATTACKS:
        if given.only and spec.partition(":")[0] not in given.only.split(","):
            continue
        attack = read_attack(spec).attack
        if given.scale == "raw":
            if not hasattr(attack, "scale"):
                continue
            attack = dataclasses.replace(attack, scale="raw")  # type: ignore[type-var]
        guarded = guards["demo-plain" if spec.startswith(BEHIND_A_PURIFIER) else "identity"]
        assert isinstance(guarded, GuardedModule)
        with torch.no_grad():  # the threshold that joint-square evades, above the scores of all clean images
            rejection = Rejection(threshold=guarded.purifier.score(pixels).max().item() + 1e-6)
        start, row = time.perf_counter(), {"attack": spec, "threat": str(threat)}
        for name, (factor, offset) in CHANGES.items():
            classifier = TorchPixelClassifier(Changed(guarded.pixel_classifier(), factor, offset), Preprocessing())
            streams = [SampleGenerator(seed, range(len(pixels))) for seed in (1, 0)]
            target = Target(classifier, guarded.purifier, ROUTES[attack.needs], streams[0], rejection=rejection)
            found = threat.project(attack.perturb(target, pixels, labels, threat, streams[1]).detach(), pixels)
            with torch.no_grad():
                row[name] = int((guarded(found).argmax(1) != labels).sum())
        print(f"   {json.dumps(row)},  # {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
