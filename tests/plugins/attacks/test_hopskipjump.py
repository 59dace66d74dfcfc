"""HopSkipJump: against known distances, with labels alone, within its queries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attack_helpers import Noisy, Same, dual_norm, run, two_classes
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from query_helpers import LabelsOnly, standing, target_of

THREATS = [Threat("linf", 0.1), Threat("l2", 1.5)]


@pytest.mark.parametrize(("norm", "median", "most"), [("l2", 1.02, 1.1), ("linf", 1.12, 1.25)])
def test_comes_close_to_the_smallest_change_on_a_linear_classifier(norm, median, most):
    linear, pixels, labels, margin = (part[:40] if isinstance(part, torch.Tensor) else part for part in two_classes())
    distance = margin / dual_norm(linear.weight, norm)
    threat = Threat(norm, 1e-6)  # nothing fools within it, so all queries go into coming closer
    found = run("hopskipjump:queries=3000", linear, pixels, labels, threat)
    ratio = threat.distance(found, pixels) / distance
    assert (linear(found).argmax(1) != labels).all()
    assert ratio.min() > 0.999
    assert ratio.median() < median and ratio.max() < most


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_labels_are_enough(threat, net, images):
    spec = "hopskipjump:queries=300,init_samples=20"
    logits, labels_only = (run(spec, one, *images, threat) for one in (net, LabelsOnly(net)))
    assert torch.equal(logits, labels_only)


@pytest.mark.parametrize("filter_", [Same, Noisy])
@pytest.mark.parametrize("queries", [7, 60, 200])
def test_no_image_exceeds_its_queries(filter_, queries, net, images):
    pixels, labels = (part[:6] for part in images)
    attack = read_attack(f"hopskipjump:queries={queries},init_samples=10").attack
    for image in range(6):
        target = target_of(net, 1, filter_=filter_)
        one = slice(image, image + 1)
        attack.perturb(target, pixels[one], labels[one], Threat("l2", 1e-6), SampleGenerator(0, [image]))
        assert 0 < target.spent.queries <= max(queries, 5)
    assert target.spent.gradients == 0


def test_an_image_without_a_start_comes_back_unchanged(images):
    class One(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.ones(len(pixels)), torch.zeros(len(pixels))], 1)

    pixels, _ = images
    target = target_of(One(), 64)
    found = read_attack("hopskipjump:starts=9").attack.perturb(
        target, pixels, torch.zeros(64, dtype=torch.long), THREATS[0], SampleGenerator(0, range(64))
    )
    assert torch.equal(found, pixels)
    assert target.spent.queries == 64 * 10


def test_on_the_route_oblivious_images_go_to_the_edge(net, images):
    pixels, labels = (part[:40] for part in images)
    threat, spec = Threat("l2", 2), "hopskipjump:queries=500,init_samples=20"
    near, far = (run(spec, net, pixels, labels, threat, route=route) for route in ("none", "oblivious"))
    inside = (threat.distance(near, pixels) <= threat.eps) & (net(pixels).argmax(1) == labels)
    assert inside.sum() > 10
    assert (net(far).argmax(1) != labels)[inside].all()
    loss = nn.CrossEntropyLoss(reduction="none")
    assert (loss(net(far), labels) - loss(net(near), labels))[inside].median() > 0.3


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize(("filter_", "route"), [(Same, "oblivious"), (Noisy, "exact")])
def test_misclassified_images_go_to_the_edge_if_the_judge_may_differ(filter_, route, threat, net, images):
    pixels = images[0][:16]
    wrong = (net(pixels).argmax(1) + 5) % 10
    found = run("hopskipjump:queries=60", net, pixels, wrong, threat, filter_=filter_, route=route)
    assert (threat.distance(found, pixels) > 0.4 * threat.eps).all()
    assert (threat.distance(found, pixels) <= threat.eps + 1e-6).all()
    assert (net(found).argmax(1) != wrong).all()
    kept = run("hopskipjump:queries=60", net, pixels, wrong, threat, route="none")
    assert torch.equal(kept, pixels)


def test_under_a_random_purifier_the_images_fool_fresh_draws(net, images):
    pixels, labels = (part[:40] for part in images)
    threat = Threat("l2", 4)
    found = threat.project(
        run("hopskipjump:queries=1000,init_samples=50", net, pixels, labels, threat, filter_=Noisy), pixels
    )
    noise = run("noise", net, pixels, labels, threat, filter_=Noisy)
    assert standing(net, found, labels) < standing(net, noise, labels) - 0.1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hopskipjump:queries=0", "attack 'hopskipjump': queries and starts must be at least 1, got 0 and 100"),
        ("hopskipjump:starts=0", "attack 'hopskipjump': queries and starts must be at least 1, got 5000 and 0"),
        ("hopskipjump:init_samples=1", "attack 'hopskipjump': init_samples must be at least 2, got 1"),
        ("hopskipjump:radius=0", "attack 'hopskipjump': radius must be a positive number, got 0"),
    ],
)
def test_impossible_options_are_errors(spec, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(spec)
