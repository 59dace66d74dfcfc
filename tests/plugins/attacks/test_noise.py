"""Random noise: labels alone, how many draws, which images."""

from __future__ import annotations

import pytest
import torch

from attack_helpers import Noisy, Same, dual_norm, run, two_classes
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from query_helpers import LabelsOnly, target_of

THREATS = [Threat("linf", 0.3), Threat("l2", 6), Threat("l1", 120)]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_on_a_linear_classifier_only_images_within_eps_flip_and_far_fewer(norm):
    linear, pixels, labels, margin = two_classes()
    distance = margin / dual_norm(linear.weight, norm)
    eps = distance.median().item()
    flipped = linear(run("noise:draws=40", linear, pixels, labels, Threat(norm, eps))).argmax(1) != labels
    assert not flipped[distance > eps * 1.001].any()
    assert 5 < flipped.sum() < 100


@pytest.mark.parametrize("filter_", [Same, Noisy])
def test_labels_are_enough(filter_, net, images):
    whole, labels_only = (run("noise", one, *images, THREATS[0], filter_=filter_) for one in (net, LabelsOnly(net)))
    assert torch.equal(whole, labels_only)


def test_more_draws_fool_more_and_fooled_images_ask_no_more(net, images):
    pixels, labels = images
    few, many = (net(run(f"noise:draws={draws}", net, *images, THREATS[0])).argmax(1) != labels for draws in (1, 20))
    assert (many | ~few).all() and many.sum() > few.sum()
    target = target_of(net, 64)
    noise = read_attack("noise:draws=3").attack
    wrong = (net(pixels).argmax(1) + 1) % 10
    assert torch.equal(noise.perturb(target, pixels, wrong, THREATS[0], SampleGenerator(0, range(64))), pixels)
    assert (target.spent.queries, target.spent.gradients) == (64, 0)


def test_under_a_random_purifier_one_lucky_draw_does_not_decide(net, images):
    pixels, labels = images
    # A change of nothing: the answers are wrong by chance alone, and each image is asked more than once.
    target = target_of(net, 64, filter_=Noisy)
    read_attack("noise:draws=1").attack.perturb(
        target, pixels, labels, Threat("linf", 0), SampleGenerator(0, range(64))
    )
    assert 5 * 64 <= target.spent.queries <= 2 * 5 * 64


@pytest.mark.parametrize(("filter_", "route"), [(Same, "oblivious"), (Noisy, "exact")])
def test_misclassified_images_get_draws_if_the_judge_may_differ(filter_, route, net, images):
    pixels = images[0]
    wrong = (net(pixels).argmax(1) + 1) % 10
    found = run("noise:draws=3", net, pixels, wrong, THREATS[1], filter_=filter_, route=route)
    assert (THREATS[1].distance(found, pixels) > 1).all()
    assert (net(found).argmax(1) != wrong).double().mean() > 0.9


def test_impossible_options_are_errors():
    with pytest.raises(ConfigError, match="attack 'noise': draws must be at least 1, got 0"):
        read_attack("noise:draws=0")
