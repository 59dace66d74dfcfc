"""DeepFool: known distances, and as near as foolbox."""

from __future__ import annotations

import pytest
import torch

from attack_helpers import NoConfig, Same
from minimal_norm_helpers import (
    check_nearest,
    check_oblivious,
    check_random,
    distances,
    near_but_unlikely,
)
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

NORMS = ["linf", "l2"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
def test_finds_the_smallest_distance_on_a_linear_classifier(classes, norm):
    check_nearest("deepfool", classes, norm, within=1.1)


def test_on_the_route_oblivious_images_go_beyond_the_edge(net, images):
    check_oblivious("deepfool:candidates=3", "l2", net, images)


def test_under_a_random_purifier_the_images_fool_fresh_noise(net, images):
    check_random("deepfool:steps=10,candidates=3", "l2", net, images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:foolbox", "ignore::DeprecationWarning:eagerpy")
@pytest.mark.parametrize("norm", NORMS)
def test_as_near_as_foolbox(norm, net, images):
    import foolbox

    attack = foolbox.attacks.LinfDeepFoolAttack() if norm == "linf" else foolbox.attacks.L2DeepFoolAttack()
    pixels, labels = images[0][:24], net(images[0][:24]).argmax(1)
    found = attack(foolbox.PyTorchModel(net, bounds=(0, 1)), pixels, labels, epsilons=None)[1]
    theirs = Threat(norm, 1).distance(found, pixels)
    assert distances("deepfool", norm, net, (pixels, labels)).median() <= 1.05 * theirs.median()


def test_the_nearest_class_is_not_always_the_likeliest():
    module, pixels, labels, distance = near_but_unlikely()
    two, three = (distances(f"deepfool:candidates={n}", "l2", module, (pixels, labels)) for n in (2, 3))
    assert (two > 1.2 * distance).all()
    assert (three <= 1.06 * distance).all()


def test_misclassified_images_are_left_as_they_are_and_cost_nothing(net, images):
    pixels = images[0][:8]
    labels = (net(pixels).argmax(1) + 1) % 10
    target = Target(TorchPixelClassifier(net, Preprocessing()), Same(NoConfig()), "exact", SampleGenerator(0, range(8)))
    attack = read_attack("deepfool").attack
    found = attack.perturb(target, pixels, labels, Threat("l2", 1), SampleGenerator(1, range(8)))
    assert torch.equal(found, pixels) and target.spent.gradients == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps=0", "attack 'deepfool': steps must be at least 1, got 0"),
        ("candidates=1", "attack 'deepfool': candidates must be at least 2, got 1"),
        ("overshoot=-1", "attack 'deepfool': overshoot must be a finite number >= 0, got -1"),
    ],
)
def test_impossible_options_are_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(f"deepfool:{options}")
