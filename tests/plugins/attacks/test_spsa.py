"""SPSA: against known optima, against noise, and under a random purifier."""

from __future__ import annotations

import pytest
import torch

from attack_helpers import Noisy, dual_norm, run, two_classes
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from query_helpers import standing, target_of

THREATS = [Threat("linf", 0.08), Threat("l2", 1.5)]


@pytest.mark.parametrize(
    ("options", "share"), [("lr=0.2", 0.85), ("lr=0.2,optimizer=sign", 0.85), ("lr=0.2,loss=ce", 0.75)]
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_classifier_the_images_within_eps_flip(options, share, norm):
    linear, pixels, labels, margin = (part[:60] if isinstance(part, torch.Tensor) else part for part in two_classes())
    distance = margin / dual_norm(linear.weight, norm)
    eps = distance.median().item()
    found = run(f"spsa:steps=30,samples=40,{options}", linear, pixels, labels, Threat(norm, eps))
    flipped = linear(found).argmax(1) != labels
    assert flipped[distance < eps * share].all()
    assert not flipped[distance > eps * 1.001].any()
    assert (distance < eps * share).sum() > 10


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_is_stronger_than_noise_but_not_than_pgd(threat, net, images):
    labels = images[1]
    spsa, noise, pgd = (
        (net(run(spec, net, *images, threat)).argmax(1) == labels).sum()
        for spec in ("spsa:steps=15,samples=24,lr=0.3", "noise", "pgd")
    )
    assert pgd <= spsa < noise - 10


def test_queries_are_counted(net, images):
    pixels, labels = images
    right = net(pixels).argmax(1) == labels
    pixels, labels = pixels[right], labels[right]
    count, target = len(labels), target_of(net, len(labels))
    attack = read_attack("spsa:steps=3,samples=5").attack
    attack.perturb(target, pixels, labels, Threat("linf", 1e-5), SampleGenerator(0, range(count)))
    assert (target.spent.queries, target.spent.gradients) == (count * (1 + 3 * (2 * 5 + 1)), 0)
    target = target_of(net, count)
    assert torch.equal(
        attack.perturb(target, pixels, (labels + 1) % 10, THREATS[0], SampleGenerator(0, range(count))), pixels
    )
    assert target.spent.queries == count


def test_large_images_are_sampled_in_parts():
    pixels = torch.full((2, 3, 300, 300), 0.5)
    target = target_of(torch.nn.Sequential(torch.nn.AvgPool2d(300), torch.nn.Flatten()), 2)
    labels = torch.tensor([0, 1])
    found = read_attack("spsa:steps=2,samples=3").attack.perturb(
        target, pixels, labels, Threat("linf", 0.1), SampleGenerator(0, range(2))
    )
    assert (target.logits(found).argmax(1) != labels).all()


def test_under_a_random_purifier_the_images_fool_fresh_draws(net, images):
    pixels, labels = images
    spec, threat = "spsa:steps=12,samples=24,delta=0.1,lr=0.3", Threat("linf", 0.1)
    found, noise = (run(one, net, pixels, labels, threat, filter_=Noisy) for one in (spec, "noise"))
    assert standing(net, found, labels) < standing(net, noise, labels) - 0.05


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("spsa:steps=0", "attack 'spsa': steps and samples must be at least 1, got 0 and 128"),
        ("spsa:samples=0", "attack 'spsa': steps and samples must be at least 1, got 100 and 0"),
        ("spsa:delta=0", "attack 'spsa': delta must be a positive number, got 0"),
        ("spsa:lr=nan", "attack 'spsa': lr must be a positive number, got nan"),
        ("spsa:loss=dlr", "attack 'spsa': loss must be one of margin, ce, got 'dlr'"),
        ("spsa:optimizer=sgd", "option 'optimizer': expected one of adam, sign, got 'sgd'"),
    ],
)
def test_impossible_options_are_errors(spec, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(spec)
