"""FAB-T: known distances, as near as AutoAttack's, and its cost."""

from __future__ import annotations

import pytest
import torch

from attack_helpers import NoConfig, Same, run
from minimal_norm_helpers import (
    EPS,
    check_edge,
    check_nan,
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
from purifier.torch_tools.norms import norm_of

NORMS = ["linf", "l2", "l1"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
def test_finds_the_smallest_distance_on_a_linear_classifier(classes, norm):
    check_nearest("fab-t:steps=10,minimal=true", classes, norm, within=1.06)


def test_on_the_route_oblivious_images_go_beyond_the_edge(net, images):
    check_oblivious("fab-t:steps=8,targets=2", "l2", net, images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_the_route_oblivious_images_lie_on_the_budgets_edge(norm, net, images):
    check_edge("fab-t:steps=10,targets=3", norm, net, images)


@pytest.mark.parametrize("norm", NORMS)
def test_recovers_from_nan_gradients(norm, net, images):
    check_nan("fab-t:steps=10,targets=3", norm, net, images)


def test_under_a_random_purifier_the_images_fool_fresh_noise(net, images):
    check_random("fab-t:steps=10,targets=2", "l2", net, images)


@pytest.mark.parametrize("norm", NORMS)
def test_as_near_as_autoattack(norm, net, images):
    fab = pytest.importorskip("pyautoattack.fab_pt")
    pixels, labels = (part[:24] for part in images)
    theirs = torch.full((24,), torch.inf)
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    attack = fab.FABAttack_PT(net, norm=name, n_iter=20, targeted=True, device="cpu")
    for place in (2, 3, 4):
        attack.target_class = place
        found = attack.attack_single_run(pixels, labels, is_targeted=True)
        fooled = net(found).argmax(1) != labels
        theirs = torch.where(fooled, torch.minimum(theirs, norm_of(found - pixels, norm)), theirs)
    ours = distances("fab-t:steps=20,targets=3,minimal=true", norm, net, (pixels, labels))
    assert ours.median() <= 1.05 * theirs.median()
    assert ours.isfinite().sum() >= theirs.isfinite().sum()


def test_one_gradient_per_step_and_none_for_finished_images(net, images):
    pixels, labels = images
    labels = torch.where(torch.arange(64) < 32, net(pixels).argmax(1), (net(pixels).argmax(1) + 1) % 10)

    def spent(spec: str, eps: float) -> tuple[int, int]:
        target = Target(
            TorchPixelClassifier(net, Preprocessing()), Same(NoConfig()), "exact", SampleGenerator(0, range(64))
        )
        attack = read_attack(spec).attack
        attack.perturb(target, pixels, labels, Threat("linf", eps), SampleGenerator(1, range(64)))
        return target.spent.queries, target.spent.gradients

    # In a budget that reaches nothing all 32 images take all steps: one pass each, and one more at the end of a start.
    assert spent("fab-t:steps=5,targets=3", 1e-6) == (64 + 3 * 32 * 6, 3 * 32 * 5)
    assert spent("fab-t:steps=5,targets=3", 0.2)[1] < 3 * 32 * 5 / 2
    assert spent("fab-t:steps=5,targets=3,minimal=true", 0.2)[1] == 3 * 32 * 5


def test_more_targets_than_classes_means_all_classes(net, images):
    few = images[0][:6], images[1][:6]
    assert torch.equal(*(run(f"fab-t:steps=3,targets={n}", net, *few, Threat("l2", EPS["l2"])) for n in (9, 50)))


def test_the_nearest_class_is_not_always_the_likeliest():
    module, pixels, labels, distance = near_but_unlikely()
    one, two = (distances(f"fab-t:steps=5,minimal=true,targets={n}", "l2", module, (pixels, labels)) for n in (1, 2))
    assert (one > 1.2 * distance).all()
    assert (two <= 1.06 * distance).all()


def test_without_minimal_images_are_within_the_budget_but_less_near(net, images):
    few, threat = (images[0][:16], images[1][:16]), Threat("l2", 1.0)
    soon, late = (run(f"fab-t:steps=10,targets=1{more}", net, *few, threat) for more in ("", ",minimal=true"))
    soon, late = (threat.distance(found, few[0]) for found in (soon, late))
    within = soon <= threat.eps
    assert within.sum() > 8 and (late <= soon + 1e-6).all()
    assert (late < soon - 1e-4)[within].any()


def test_a_flat_classifier_leaves_images_in_place(images):
    pixels = images[0][:4]
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3)).requires_grad_(False)
    flat[1].weight.zero_()
    flat[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    labels = torch.zeros(4, dtype=torch.long)
    for norm in NORMS:
        assert torch.equal(run("fab-t:steps=3", flat, pixels, labels, Threat(norm, 0.1)), pixels)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps=0", "attack 'fab-t': steps must be at least 1, got 0"),
        ("targets=0", "attack 'fab-t': targets must be at least 1, got 0"),
        ("restarts=0", "attack 'fab-t': restarts must be at least 1, got 0"),
        ("alpha_max=1.5", r"attack 'fab-t': alpha_max must be in \[0, 1\], got 1.5"),
        ("eta=0.9", "attack 'fab-t': eta must be a finite number of at least 1, got 0.9"),
        ("beta=0", r"attack 'fab-t': beta must be in \(0, 1\], got 0"),
    ],
)
def test_impossible_options_are_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(f"fab-t:{options}")
