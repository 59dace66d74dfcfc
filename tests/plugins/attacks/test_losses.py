"""The losses attacks climb: their formulas against a peer library, edge cases, and attacks that use them."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import purifier
from attack_helpers import NoConfig, Noisy, Same, TwoClasses, run, two_classes
from peer_libraries import torchattacks
from purifier import Threat
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

NAMES = ("ce", "dlr", "margin", "targeted")
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 4 * torch.randn(50, 10, generator=GENERATOR)
LABELS = torch.randint(10, (50,), generator=GENERATOR)
TARGETS = (LABELS + torch.randint(1, 10, (50,), generator=GENERATOR)) % 10


@pytest.fixture(scope="module")
def losses() -> ModuleType:
    """The plugins' module of losses: beside the class that the name ``pgd`` stands for."""
    return importlib.import_module(purifier.attacks.get("pgd").__module__.rpartition(".")[0] + "._losses")


def slope(loss, logits: Tensor, *rest: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, *rest).sum(), leaf)[0]


def test_there_are_four_losses(losses):
    assert tuple(losses.LOSSES) == NAMES


def test_dlr_losses_match_torchattacks(losses):
    theirs = torchattacks()
    one, several = theirs.APGD(nn.Flatten()), theirs.APGDT(nn.Flatten())
    torch.testing.assert_close(losses.dlr(LOGITS, LABELS), one.dlr_loss(LOGITS, LABELS))
    reached = losses.targeted_dlr(LOGITS, LABELS, TARGETS)
    torch.testing.assert_close(reached, several.dlr_loss_targeted(LOGITS, LABELS, TARGETS))


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_losses_ignore_scale_and_offset(losses, classes):
    logits, labels = LOGITS[:, :classes], LABELS % classes
    targets = (labels + 1 + TARGETS % (classes - 1)) % classes
    for loss, rest in ((losses.dlr, (labels,)), (losses.targeted_dlr, (labels, targets))):
        torch.testing.assert_close(loss(1000 * logits + 7, *rest), loss(logits, *rest), atol=1e-4, rtol=1e-3)


def test_targeted_dlr_has_a_gradient_towards_every_class(losses):
    for classes in (3, 4):
        logits = torch.arange(classes, 0.0, -1).square()[None]
        for wrong in range(1, classes):
            goal = slope(losses.targeted_dlr, logits, torch.tensor([0]), torch.tensor([wrong]))
            assert goal[0, wrong] > 0.01, (classes, wrong)


def test_with_two_classes_dlr_is_the_margin(losses):
    logits, labels = LOGITS[:, :2], LABELS % 2
    margin = losses.margin(logits, labels)
    assert torch.equal(losses.dlr(logits, labels), margin)
    assert torch.equal(losses.targeted_dlr(logits, labels, 1 - labels), margin)
    assert torch.equal(margin > 0, logits.argmax(1) != labels)


@pytest.mark.parametrize("name", ["dlr", "margin"])
def test_the_sign_tells_whether_the_image_is_misclassified(losses, name):
    assert torch.equal(losses.LOSSES[name](LOGITS, LABELS) > 0, LOGITS.argmax(1) != LABELS)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("name", [*NAMES, "targeted_dlr"])
def test_a_logit_of_minus_infinity_removes_its_class(losses, name, classes):
    logits, labels = LOGITS[:, :classes], LABELS % classes
    masked = torch.cat([logits, torch.full((50, 4), -torch.inf)], 1)
    rest = (labels, (labels + 1) % classes) if name == "targeted_dlr" else (labels,)
    loss = getattr(losses, name) if name == "targeted_dlr" else losses.LOSSES[name]
    torch.testing.assert_close(loss(masked, *rest), loss(logits, *rest))
    torch.testing.assert_close(slope(loss, masked, *rest)[:, :classes], slope(loss, logits, *rest))


def test_only_cross_entropy_vanishes_on_a_very_sure_classifier(losses):
    sure = LOGITS.scatter(1, LABELS.unsqueeze(1), 1000.0)
    assert not slope(losses.LOSSES["ce"], sure, LABELS).any()
    for name in ("dlr", "margin", "targeted"):
        assert slope(losses.LOSSES[name], sure, LABELS).abs().sum(1).min() > 1e-4, name


def test_equal_and_huge_logits_give_finite_losses(losses):
    for logits in (torch.zeros(50, 10), LOGITS * 1e30):
        for name in NAMES:
            assert losses.LOSSES[name](logits, LABELS).isfinite().all(), name
            assert slope(losses.LOSSES[name], logits, LABELS).isfinite().all(), name
        assert losses.targeted_dlr(logits, LABELS, TARGETS).isfinite().all()


def test_targeted_aims_at_one_class_for_a_whole_attack(losses):
    aimed = losses.loss_of("targeted", LABELS, LOGITS)
    second = LOGITS.scatter(1, LABELS.unsqueeze(1), -torch.inf).argmax(1)
    later = LOGITS.flip(0)
    torch.testing.assert_close(aimed(later), later.log_softmax(1).gather(1, second.unsqueeze(1)).squeeze(1))
    assert not torch.allclose(aimed(later), losses.loss_of("targeted", LABELS)(later))
    few = torch.tensor([3, 40, 7])
    assert torch.equal(aimed.select(few)(later[few]), aimed(later)[few])


def test_only_targeted_looks_before_it_starts(losses, images):
    pixels, labels = images[0][:4], images[1][:4]
    classifier = TorchPixelClassifier(nn.Flatten(), Preprocessing())
    for name in NAMES:
        target = Target(classifier, Same(NoConfig()), "exact", SampleGenerator(0, range(4)))
        losses.loss_from(name, target, pixels, labels)
        assert target.spent.queries == (4 if name == "targeted" else 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "spec", ["fgsm", "rfgsm:alpha=0.2", "pgd:steps=6", "bim:steps=6", "mim:steps=6", "joint:steps=6"]
)
def test_every_gradient_attack_climbs_each_loss(spec, name, net, images):
    pixels, labels = images
    named = f"{spec}{',' if ':' in spec else ':'}loss={name}"
    found = run(named, net, pixels, labels, Threat("linf", 0.1))
    standing = (net(found).argmax(1) == labels).sum()
    assert standing < 0.5 * (net(pixels).argmax(1) == labels).sum()


@pytest.mark.parametrize("filter_", [Same, Noisy])
@pytest.mark.parametrize("spec", ["pgd:steps=4,loss=targeted", "rfgsm:loss=targeted"])
def test_the_targeted_class_does_not_depend_on_the_batch(spec, filter_, net, images):
    pixels, labels = (part[:14] for part in images)
    threat = Threat("linf", 0.03)
    whole, ones = (run(spec, net, pixels, labels, threat, filter_=filter_, batch=batch) for batch in (14, 1))
    assert ((whole - ones).abs() < 1e-5).double().mean() >= 0.999


def test_dlr_attacks_a_classifier_that_saturates_cross_entropy():
    linear, pixels, labels, margins = two_classes()
    sure = TwoClasses(linear.weight * 1e4, linear.bias * 1e4)
    threat = Threat("linf", (margins / linear.weight.abs().sum()).max().item() * 1.01)
    hidden, open_, rescaled = (
        run(f"fgsm:{options}", sure, pixels, labels, threat, batch=400)
        for options in ("loss=ce,scale=raw", "loss=dlr,scale=raw", "loss=ce")
    )
    assert (sure(open_).argmax(1) != labels).all() and (sure(rescaled).argmax(1) != labels).all()
    assert (sure(hidden).argmax(1) == labels).double().mean() > 0.9


class BreaksDown(nn.Module):
    """Its logits are NaN for images that have become brighter than they were."""

    def __init__(self, net: nn.Module, limit: float) -> None:
        super().__init__()
        self.net, self.limit = net, limit

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.where(pixels.mean((1, 2, 3)).unsqueeze(1) > self.limit, torch.nan, self.net(pixels))


@pytest.mark.parametrize("name", NAMES)
def test_nan_logits_do_not_reach_the_pixels_or_the_other_images(name, net, images):
    pixels, labels = images
    limit = pixels.mean((1, 2, 3)).median().item()
    found = run(f"pgd:steps=5,loss={name}", BreaksDown(net, limit), pixels, labels, Threat("linf", 0.01))
    assert found.isfinite().all()
    # Not even a start of the darkest comes near the limit.
    dark = pixels.mean((1, 2, 3)) < limit - 0.01
    plain = run(f"pgd:steps=5,loss={name}", net, pixels, labels, Threat("linf", 0.01))
    assert 20 < dark.sum() < 40 and torch.allclose(found[dark], plain[dark], atol=1e-6)


def test_unknown_losses_are_errors(losses):
    with pytest.raises(ConfigError, match="attack 'x': loss must be one of ce, dlr, margin, targeted, got 'hinge'"):
        losses.check_loss("x", "hinge")
