"""Square: against pyautoattack; its queries, its restarts, random purifiers."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from attack_helpers import Noisy, dual_norm, run, two_classes
from purifier import Threat, attacks
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from query_helpers import standing, target_of

THREATS = [Threat("linf", 0.08), Threat("l2", 1.5)]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.9)])
def test_as_strong_as_pyautoattack(norm, eps, net, images):
    square = pytest.importorskip("pyautoattack.square")
    pixels, labels = images
    right = net(pixels).argmax(1) == labels
    torch.manual_seed(0)
    peer = square.SquareAttack(net, norm=norm.replace("l", "L", 1), n_queries=300, eps=eps, seed=0)
    peer.init_hyperparam(pixels)
    _, theirs = peer.attack_single_run(pixels[right], labels[right])
    ours = run("square:queries=300", net, pixels, labels, Threat(norm, eps), route="none")
    standing, peers = (net(ours).argmax(1) == labels).sum(), (net(theirs).argmax(1) == labels[right]).sum()
    assert standing <= peers + 2
    assert 5 < peers < right.sum() - 10


def test_queries_are_counted(net, images):
    pixels, labels = images
    target, square = target_of(net, 64), read_attack("square:queries=60").attack
    wrong = (net(pixels).argmax(1) + 1) % 10
    found = square.perturb(target, pixels, wrong, THREATS[0], SampleGenerator(0, range(64)))
    assert torch.equal(found, pixels)
    assert (target.spent.queries, target.spent.gradients) == (64, 0)
    # Too small a budget to fool any of those classified right: each uses all its squares, but asks of new ones only.
    right = net(pixels).argmax(1) == labels
    pixels, labels = pixels[right], labels[right]
    target = target_of(net, len(labels))
    square.perturb(target, pixels, labels, Threat("linf", 1e-5), SampleGenerator(0, range(len(labels))))
    assert 30 * len(labels) < target.spent.queries < 61 * len(labels)


def test_more_restarts_and_more_queries_fool_more(net, images):
    def right(spec: str) -> torch.Tensor:
        return net(run(spec, net, *images, Threat("linf", 0.04))).argmax(1) == images[1]

    few = right("square:queries=10")
    assert not (right("square:queries=10,restarts=4") & ~few).any()
    assert right("square:queries=200").sum() < few.sum() - 5


def test_cross_entropy_works_too(net, images):
    pixels, labels = images
    found = run("square:queries=80,loss=ce", net, pixels, labels, Threat("linf", 0.08))
    assert (net(found).argmax(1) == labels).sum() < (net(pixels).argmax(1) == labels).sum() - 10


def test_on_the_route_oblivious_images_are_driven_past_the_edge(net, images):
    pixels, labels = images
    threat = Threat("linf", 0.06)
    near, far = (run("square:queries=60", net, pixels, labels, threat, route=route) for route in ("none", "oblivious"))
    loss = nn.CrossEntropyLoss(reduction="none")
    fooled = net(near).argmax(1) != labels
    assert fooled.sum() > 20
    assert (net(far).argmax(1) != labels)[fooled].all()
    assert (loss(net(far), labels) - loss(net(near), labels))[fooled].median() > 0.3


def test_under_a_random_purifier_the_images_fool_fresh_draws(net, images):
    pixels, labels = images
    threat = Threat("linf", 0.08)
    right = (
        standing(net, pixels, labels),
        standing(net, run("noise", net, pixels, labels, threat, filter_=Noisy), labels),
    )
    target = target_of(net, 64, filter_=Noisy)
    square = read_attack("square:queries=200").attack
    found = square.perturb(target, pixels, labels, threat, SampleGenerator(0, range(64)))
    assert target.spent.queries <= 64 * 201
    assert standing(net, found, labels) < min(right) - 0.08


def proposals(*, remember: bool, take: bool) -> int:
    """How many of 60 squares of an image of one pixel are tried, if all are accepted or none is."""
    package = attacks.get("square").__module__.rpartition(".")[0]
    boxes = sys.modules[f"{package}._queries_squares"].Boxes
    squares = boxes(
        torch.full((1, 1, 1, 1), 0.5), 0.1, torch.ones(60, dtype=torch.long), SampleGenerator(0, [0]), remember=remember
    )
    count = 0
    while not squares.over().all():
        rows, proposed = squares.propose()
        count += len(rows)
        if take:
            squares.take(rows, proposed)
    return count


def test_failed_squares_are_not_tried_again_but_accepted_ones_are():
    assert proposals(remember=True, take=False) == 1
    assert proposals(remember=True, take=True) > 10
    assert proposals(remember=False, take=False) > 10


def test_under_a_random_purifier_a_lucky_answer_does_not_last():
    linear, pixels, labels, _ = two_classes()
    pixels, labels = pixels[:40], labels[:40]
    # The noise moves the score by far more than a square can.
    threat = Threat("l2", 0.3)
    found = run("square:queries=400", linear, pixels, labels, threat, filter_=Noisy)
    gained = (linear.score(pixels) - linear.score(found)) * (2 * labels - 1)
    assert gained.mean() > 0.14 * threat.eps * dual_norm(linear.weight, "l2")


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 5, 9), (1, 4, 7), (2, 1, 6)])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_small_and_oblong_images(shape, threat):
    pixels = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(pixels[0].numel(), 3)).eval().requires_grad_(False)
    found = run("square:queries=40", linear, pixels, linear(pixels).argmax(1), threat)
    assert found.isfinite().all() and not torch.equal(found, pixels)
    assert (threat.distance(found, pixels) <= threat.eps + 1e-6).all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("square:queries=0", "attack 'square': queries and restarts must be at least 1, got 0 and 1"),
        ("square:restarts=0", "attack 'square': queries and restarts must be at least 1, got 5000 and 0"),
        ("square:p=0", r"attack 'square': p is a fraction of the image and must be in \(0, 1\], got 0"),
        ("square:p=1.5", r"attack 'square': p is a fraction of the image and must be in \(0, 1\], got 1.5"),
        ("square:loss=dlr", "attack 'square': loss must be one of margin, ce, got 'dlr'"),
    ],
)
def test_impossible_options_are_errors(spec, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(spec)
