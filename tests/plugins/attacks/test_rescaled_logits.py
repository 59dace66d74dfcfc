"""A factor or an offset of all logits changes no decision, so it must not make an attack weaker."""

from __future__ import annotations

import warnings

import pytest
import torch
from attack_table import EPS, ROWS, Row, Space
from torch import Tensor, nn

import purifier
from attack_helpers import NoConfig, TwoClasses, run, two_classes
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import PixelClassifier, TorchPixelClassifier
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

FACTORS = (1e-4, 1e4)
OTHER_LOSSES = [
    Row("apgd-t:steps=8,targets=3,loss=ce"),
    Row("fmn:steps=8,loss=ce"),
    Row("joint:steps=8,loss=targeted"),
    Row("square:queries=40,loss=ce", times=2),
    Row("spsa:steps=8,samples=16,lr=0.3,loss=ce", times=2),
]


class Rescaled(nn.Module):
    """The same decisions from other logits."""

    def __init__(self, module: nn.Module, factor: float, offset: float = 0.0, *, exact: bool = False) -> None:
        super().__init__()
        self.module, self.factor, self.offset, self.exact = module, factor, offset, exact

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.module(pixels)
        return (logits.double() if self.exact else logits) * self.factor + self.offset


@pytest.mark.parametrize("row", [*ROWS, *OTHER_LOSSES], ids=lambda row: f"{row.spec}-{row.norms[0]}")
def test_no_factor_and_no_offset_makes_an_attack_weaker(row: Row, net, images):
    if row.library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(row.library)
    pixels, labels = (part[:32] for part in images)
    norm = row.norms[0]
    threat = Threat(norm, row.times * EPS[norm])

    def fooled(factor: float, offset: float = 0.0) -> int:
        # hopskipjump asks so close to the boundary that adding 100 in float32 would change decisions.
        module = Rescaled(net, factor, offset, exact=row.spec.startswith("hopskipjump"))
        found = threat.project(run(row.spec, module, pixels, labels, threat, filter_=Space), pixels)
        return int((net(found).argmax(1) != labels).sum())

    plain = fooled(1)
    assert plain > (net(pixels).argmax(1) != labels).sum()
    rescaled = {str(factor): fooled(factor) for factor in FACTORS} | {"+100": fooled(1, 100)}
    assert min(rescaled.values()) >= plain - 1, (plain, rescaled)


@pytest.mark.parametrize("spec", ["square:queries=200", "spsa:steps=10,samples=32,lr=0.3"])
def test_query_attacks_tell_better_images_from_worse_with_two_classes(spec):
    """Divided by their own spread, two logits would always be the same."""
    linear, pixels, labels, margins = two_classes()
    threat = Threat("linf", 2 * (margins / linear.weight.abs().sum()).median().item())
    flipped = [
        (linear(run(f"{spec}{scale}", linear, pixels, labels, threat, batch=400)).argmax(1) != labels).sum()
        for scale in ("", ",scale=raw")
    ]
    assert flipped[0] >= flipped[1] - 2 and flipped[1] > 200


def test_cross_entropy_finds_the_images_of_a_very_confident_classifier():
    """With the classifier's own logits it finds few of them."""
    demo = purifier.guard("demo", "demo-plain")
    pixels, labels = load_data("fashion-mnist:test").batch(range(2000, 2040))
    sure = TorchPixelClassifier(Rescaled(demo.pixel_classifier(), 100), Preprocessing())
    threat = Threat("linf", 0.1)

    def left(classifier: PixelClassifier, scale: str) -> int:
        right = torch.ones_like(labels, dtype=torch.bool)
        for spec in ("pgd:steps=8,", "fgsm:", "rfgsm:"):
            streams = [SampleGenerator(seed, range(len(pixels))) for seed in (1, 0)]
            target = Target(classifier, demo.purifier, "exact", streams[0])
            attack = read_attack(f"{spec}scale={scale}").attack
            found = threat.project(attack.perturb(target, pixels, labels, threat, streams[1]), pixels)
            with torch.no_grad():
                right &= demo(found).argmax(1) == labels
        return int(right.sum())

    ordinary = left(demo.pixel_classifier(), "normalised")
    assert left(sure, "normalised") == ordinary < 12
    assert left(sure, "raw") > 2 * ordinary
    assert left(demo.pixel_classifier(), "raw") >= ordinary - 2


@pytest.mark.parametrize("spec", ["cw:confidence=4", "ead:confidence=4"])
def test_a_margin_means_the_same_for_every_classifier(spec):
    linear, pixels, labels, _ = two_classes()
    norm = "l2" if spec.startswith("cw") else "l1"
    found = []
    for factor in (1, 100):
        module = TwoClasses(linear.weight * factor, linear.bias * factor)
        fast = f"{spec},steps=60,searches=6,minimal=true"
        found.append(run(fast, module, pixels[:12], labels[:12], Threat(norm, 0.01)))
    assert ((found[0] - found[1]).abs() < 1e-3).double().mean() > 0.99


def test_the_option_takes_two_values(net, images):
    with pytest.raises(ConfigError, match="expected one of normalised, raw, got 'own'"):
        read_attack("pgd:scale=own")
    target = Target(
        TorchPixelClassifier(net, Preprocessing()), Space(NoConfig()), "exact", SampleGenerator(0, range(64))
    )
    attack = purifier.attacks.get("pgd")(scale="own")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="scale must be one of normalised, raw, got 'own'"):
        attack.perturb(target, *images, Threat("linf", 0.1), SampleGenerator(0, range(64)))


def test_attacks_without_the_option_ask_for_labels_or_do_not_depend_on_it():
    without = {name for name in purifier.attacks.names() if not hasattr(purifier.attacks.get(name), "scale")}
    assert without == {"fab-t", "deepfool", "hopskipjump", "joint-square", "noise"}
