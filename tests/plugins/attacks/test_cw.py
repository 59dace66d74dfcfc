"""C&W: known distances, and as near as foolbox."""

from __future__ import annotations

import pytest
import torch

from attack_helpers import run, two_classes
from minimal_norm_helpers import (
    check_nan,
    check_nearest,
    check_oblivious,
    check_random,
    distances,
)
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError

NORM = "l2"


@pytest.mark.parametrize("classes", [2, 4])
def test_finds_the_smallest_distance_on_a_linear_classifier(classes):
    # Adam's first step is as long as its step size: images that are nearer than that need a smaller one.
    check_nearest("cw:steps=60,step_size=0.001,minimal=true", classes, NORM, count=12)


def test_pixels_on_the_walls_can_leave_them():
    module, pixels, labels, _ = two_classes()
    pixels, labels = pixels[:12].clone(), labels[:12]
    pixels[:, :, ::2] = (pixels[:, :, ::2] > 0.5).float()
    labels = module(pixels).argmax(1)
    # Inside the box the nearest point of the boundary is clamp(x + c w) with the c that brings the score to 0.
    towards = module.weight * (1 - 2 * labels).view(-1, 1, 1, 1)
    low, high = torch.zeros(12), torch.full((12,), 10.0)
    for _ in range(60):
        middle = (low + high) / 2
        crossed = module((pixels + middle.view(-1, 1, 1, 1) * towards).clamp(0, 1)).argmax(1) != labels
        low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
    threat = Threat(NORM, 0.001)
    nearest = threat.distance((pixels + high.view(-1, 1, 1, 1) * towards).clamp(0, 1), pixels)
    found = run("cw:minimal=true", module, pixels, labels, threat)
    reached = threat.distance(found, pixels)
    assert (module(found).argmax(1) != labels).all()
    assert (reached >= nearest - 1e-5).all()
    assert (reached / nearest).median() < 1.05, reached / nearest


def test_on_the_route_oblivious_images_go_beyond_the_edge(net, images):
    check_oblivious("cw:steps=30,searches=5", "l2", net, images)


def test_recovers_from_nan_gradients(net, images):
    check_nan("cw:steps=60,searches=7", NORM, net, images)


def test_under_a_random_purifier_the_images_fool_fresh_noise(net, images):
    check_random("cw:steps=30,searches=5", NORM, net, images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:foolbox", "ignore::DeprecationWarning:eagerpy")
def test_as_near_as_foolbox(net, images):
    import foolbox

    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=60)
    pixels, labels = images[0][:10], net(images[0][:10]).argmax(1)
    found = attack(foolbox.PyTorchModel(net, bounds=(0, 1)), pixels, labels, epsilons=None)[1]
    theirs = Threat(NORM, 1).distance(found, pixels).where(net(found).argmax(1) != labels, float("inf"))
    ours = distances("cw:steps=60,searches=6,minimal=true", NORM, net, (pixels, labels))
    assert ours.median() <= 1.05 * theirs.median()


def test_a_large_initial_const_needs_one_search(net, images):
    pixels, labels = images[0][:16], net(images[0][:16]).argmax(1)
    small, large = (
        run(f"cw:steps=60,searches=1,minimal=true,initial_const={first}", net, pixels, labels, Threat(NORM, 30))
        for first in (1e-3, 100)
    )
    assert (net(small).argmax(1) == labels).all()
    assert (net(large).argmax(1) != labels).sum() > 12


def test_confidence_sets_the_margin(net, images):
    pixels, labels = images[0][:8], net(images[0][:8]).argmax(1)
    near, sure = (
        distances(f"cw:steps=40,searches=5,minimal=true,confidence={k}", NORM, net, (pixels, labels)) for k in (0, 2)
    )
    found = near.isfinite()
    assert (sure > near)[found].all() and found.sum() > 5


@pytest.mark.parametrize("spec", ["cw", "ead"])
def test_an_image_tied_with_its_label_is_attacked(spec):
    """Right, for of equal logits the first is the largest, and on the hinge's edge."""
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).requires_grad_(False)
    module[1].weight.copy_(torch.stack([torch.zeros(16), torch.ones(16)]))
    module[1].bias.copy_(torch.tensor([8.0, 0.0]))
    pixels, labels = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    assert module(pixels).argmax(1) == 0 and module(pixels).diff() == 0
    assert module(run(spec, module, pixels, labels, Threat("l2", 1.0))).argmax(1) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps=0", "attack 'cw': steps must be at least 1, got 0"),
        ("searches=0", "attack 'cw': searches must be at least 1, got 0"),
        ("initial_const=0", "attack 'cw': initial_const must be a finite positive number, got 0"),
        ("initial_const=inf", "attack 'cw': initial_const must be a finite positive number, got inf"),
        ("step_size=0", "attack 'cw': step_size must be a finite positive number, got 0"),
        ("confidence=-1", "attack 'cw': confidence must be a finite number >= 0, got -1"),
    ],
)
def test_impossible_options_are_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(f"cw:{options}")
