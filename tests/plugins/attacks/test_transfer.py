"""Transfer: from the classifier itself as strong as white-box, from another net weaker but effective."""

from __future__ import annotations

import sys
from types import ModuleType

import onnx
import pytest
import torch
import torchvision
from torch import nn
from torchvision import transforms

from attack_helpers import NoConfig, Noisy, Same, run
from onnx_models import linear
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from query_helpers import LabelsOnly, standing, target_of

THREATS = [Threat("linf", 0.06), Threat("l2", 1.2)]
SPEC = "transfer:attacks=fgsm+pgd:steps=10"


@pytest.fixture
def models(net, images, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of MODEL specs: the net, another trained alike, ones that do not fit."""
    module = ModuleType("surrogates")
    pixels, _ = images
    torch.manual_seed(5)
    other = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(other.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        # Taught by the net's answers, as a thief would.
        noisy = (pixels + 0.2 * torch.randn_like(pixels)).clamp(0, 1)
        nn.functional.cross_entropy(other(noisy), net(noisy).argmax(1)).backward()
        optimizer.step()
    module.net, module.other = net, other.eval().requires_grad_(False)  # type: ignore[attr-defined]
    module.five = nn.Sequential(nn.Flatten(), nn.Linear(784, 5))  # type: ignore[attr-defined]
    module.large = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))  # type: ignore[attr-defined]
    module.nan = nn.Sequential(net, nn.Hardtanh(torch.nan, torch.nan))
    module.softmax = nn.Sequential(net, nn.Softmax(1))
    monkeypatch.setitem(sys.modules, "surrogates", module)
    return module


@pytest.mark.parametrize("spec", ["transfer:attacks=pgd", "transfer:surrogate=surrogates:net,attacks=pgd"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_from_the_classifier_itself_it_equals_the_white_box_attack(spec, threat, net, images, models):
    pixels, labels = images
    found, white = (net(run(one, net, pixels, labels, threat)).argmax(1) != labels for one in (spec, "pgd"))
    assert torch.equal(found, white)
    assert 25 < found.sum() < 64


def test_from_another_net_it_fools_more_than_noise(net, images, models):
    pixels, labels = images
    threat = Threat("linf", 0.1)
    other, noise, white = (
        (net(run(spec, net, pixels, labels, threat)).argmax(1) == labels).sum()
        for spec in ("transfer:surrogate=surrogates:other", "noise", "pgd")
    )
    assert white < other < noise - 5


def test_more_crafting_attacks_never_fool_fewer(net, images, models):
    pixels, labels = images

    def fooled(attacks: str) -> torch.Tensor:
        spec = f"transfer:surrogate=surrogates:other,attacks={attacks}"
        return net(run(spec, net, pixels, labels, Threat("linf", 0.08))).argmax(1) != labels

    one, both = fooled("pgd:steps=1"), fooled("pgd:steps=1+pgd")
    assert (both | ~one).all() and both.sum() > one.sum() > 10


@pytest.mark.parametrize("filter_", [Same, Noisy])
def test_the_targets_labels_are_enough(filter_, net, images, models):
    spec = "transfer:surrogate=surrogates:other,attacks=fgsm+pgd:steps=10"
    logits, labels_only = (run(spec, one, *images, THREATS[0], filter_=filter_) for one in (net, LabelsOnly(net)))
    assert torch.equal(logits, labels_only)
    assert not torch.equal(logits, images[0])


def test_images_that_do_not_fool_the_target_are_the_surrogates_worst(net, images, models):
    pixels, labels = images
    stubborn = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False)
    stubborn[1].weight.zero_()
    stubborn[1].bias.copy_(nn.functional.one_hot(torch.tensor(3), 10).float())
    threes = labels == 3
    spec = "transfer:surrogate=surrogates:net,attacks={}"
    gentle, strong, both = (
        run(spec.format(attacks), stubborn, pixels[threes], labels[threes], THREATS[0])
        for attacks in ("fgsm", "pgd", "fgsm+pgd")
    )
    loss = nn.CrossEntropyLoss(reduction="none")
    worst = torch.maximum(*(loss(net(found), labels[threes]) for found in (gentle, strong)))
    assert torch.allclose(loss(net(both), labels[threes]), worst)


def test_queries_of_the_target_are_counted(net, images, models):
    pixels, labels = images
    for spec, gradients in (("transfer:attacks=fgsm", 64), ("transfer:surrogate=surrogates:net,attacks=fgsm", 0)):
        target = target_of(net, 64)
        right = net(pixels).argmax(1) == labels
        shown = torch.where(right, labels, net(pixels).argmax(1))
        read_attack(spec).attack.perturb(target, pixels, shown, THREATS[0], SampleGenerator(0, range(64)))
        assert target.spent.gradients == gradients
        assert gradients or target.spent.queries == 2 * 64


def test_under_a_random_purifier_the_images_fool_fresh_draws(net, images):
    pixels, labels = images
    threat = Threat("linf", 0.1)
    found, noise = (run(spec, net, pixels, labels, threat, filter_=Noisy) for spec in (SPEC, "noise"))
    assert standing(net, found, labels) < standing(net, noise, labels) - 0.15


def test_on_the_route_oblivious_candidates_are_the_strongest(net, images):
    pixels, labels = images
    spec = f"{SPEC},scale=raw"
    found, first = (run(spec, net, pixels, labels, THREATS[0], route=route) for route in ("oblivious", "none"))
    loss = nn.CrossEntropyLoss(reduction="none")
    assert (loss(net(found), labels) >= loss(net(first), labels) - 1e-4).all()
    assert not torch.equal(found, first)


def test_the_norms_are_those_of_its_attacks(net, images):
    assert read_attack("transfer:attacks=pgd").attack.norms == ("linf", "l2", "l1")
    common = read_attack("transfer:attacks=pgd+mim").attack
    assert common.norms == ("linf", "l2")
    said = "its attacks 'pgd\\+mim' all support linf, l2, not l1; choose others"
    with pytest.raises(ConfigError, match=said):
        common.perturb(target_of(net, 64), *images, Threat("l1", 1), SampleGenerator(0, range(64)))


def test_a_surrogate_of_a_library_has_its_own_preprocessing(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=10).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    normalised = nn.Sequential(
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), model
    )  # takes pixels
    pixels = torch.rand(4, 3, 32, 32)
    labels, threat = normalised(pixels).argmax(1), Threat("linf", 1e-4)
    spec = f"transfer:surrogate=torchvision:shufflenet_v2_x0_5,weights={tmp_path / 'w.pt'},attacks=fgsm"
    found = run(spec, normalised, pixels, labels, threat)
    torch.testing.assert_close(found, run("transfer:attacks=fgsm", normalised, pixels, labels, threat))
    assert not torch.equal(found, pixels)


def test_a_surrogate_is_loaded_once(net, images, models, monkeypatch):
    attack = read_attack("transfer:surrogate=surrogates:other,attacks=fgsm").attack
    for _ in range(2):
        attack.perturb(target_of(net, 64), *images, THREATS[0], SampleGenerator(0, range(64)))
        monkeypatch.setattr(models, "other", models.five)


@pytest.mark.parametrize(
    ("surrogate", "said"),
    [
        ("five", "must have the classifier's 10 classes, got 5 from 'surrogates:five'; give one trained on the same"),
        ("large", "'surrogates:large' fails on the audited images, 1x28x28 .*; give one for these images"),
        ("nan", "must return logits, got NaN or infinity from 'surrogates:nan'; fix it, or give another"),
        ("softmax", "must return logits, got probabilities from 'surrogates:softmax'; fix it, or give another"),
    ],
)
def test_unsuitable_surrogates_are_errors(surrogate, said, net, images, models):
    attack = read_attack(f"transfer:surrogate=surrogates:{surrogate}").attack
    with pytest.raises(ConfigError, match=said):
        attack.perturb(target_of(net, 64), *images, THREATS[0], SampleGenerator(0, range(64)))


def test_a_surrogate_without_gradients_is_an_error(net, images, tmp_path):
    onnx.save(linear(), tmp_path / "net.onnx")
    attack = read_attack(f"transfer:surrogate={tmp_path / 'net.onnx'}").attack
    with pytest.raises(ConfigError, match="is an ONNX model, which has none; give a torch module"):
        attack.perturb(target_of(net, 64), *images, THREATS[0], SampleGenerator(0, range(64)))
    rounded = TorchPixelClassifier(net, Preprocessing(dtype="uint8", scale=255))
    target = Target(rounded, Same(NoConfig()), "none", SampleGenerator(0, range(64)))
    with pytest.raises(ConfigError, match="the surrogate must have gradients, but torch Sequential has none"):
        read_attack("transfer").attack.perturb(target, *images, THREATS[0], SampleGenerator(0, range(64)))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("transfer:attacks=fgsm+square", "joined by \\+, got 'fgsm\\+square', one of which needs scores"),
        ("transfer:weights=w.pt", "weights needs a surrogate; give surrogate=package.module:factory"),
        ("transfer:attacks=pgd:steps=0", "attack 'pgd': steps and restarts must be at least 1"),
    ],
)
def test_impossible_options_are_errors(spec, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(spec)
