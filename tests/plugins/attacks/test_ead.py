"""EAD: known distances, and as near as foolbox."""

from __future__ import annotations

import pytest

from attack_helpers import Noisy, run
from minimal_norm_helpers import (
    EPS,
    check_nan,
    check_nearest,
    check_oblivious,
    check_random,
    distances,
)
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError
from query_helpers import standing

NORM = "l1"


@pytest.mark.parametrize("classes", [2, 4])
def test_finds_the_smallest_distance_on_a_linear_classifier(classes):
    check_nearest("ead:steps=100,minimal=true", classes, NORM, count=12)


def test_on_the_route_oblivious_images_go_beyond_the_edge(net, images):
    check_oblivious("ead:steps=30,searches=5", "l1", net, images)


def test_recovers_from_nan_gradients(net, images):
    check_nan("ead:steps=30,searches=5", NORM, net, images)


def test_under_a_random_purifier_the_images_fool_fresh_noise(net, images):
    check_random("ead:steps=30,searches=5", NORM, net, images)


def test_under_a_random_purifier_more_steps_do_not_weaken_the_attack(net, images):
    pixels, labels = (part[:20] for part in images)
    threat = Threat(NORM, 1.5 * EPS[NORM])
    few, many = (
        standing(net, threat.project(run(spec, net, pixels, labels, threat, filter_=Noisy), pixels), labels, draws=16)
        for spec in ("ead:steps=30,searches=5", "ead:steps=60,searches=7")
    )
    assert many < few + 0.04


@pytest.mark.filterwarnings("ignore::DeprecationWarning:foolbox", "ignore::DeprecationWarning:eagerpy")
def test_as_near_as_foolbox(net, images):
    import foolbox

    attack = foolbox.attacks.EADAttack(binary_search_steps=6, steps=60, decision_rule="L1")
    pixels, labels = images[0][:12], net(images[0][:12]).argmax(1)
    found = attack(foolbox.PyTorchModel(net, bounds=(0, 1)), pixels, labels, epsilons=None)[1]
    theirs = Threat(NORM, 1).distance(found, pixels).where(net(found).argmax(1) != labels, float("inf"))
    ours = distances("ead:steps=60,searches=6,minimal=true", NORM, net, (pixels, labels))
    assert ours.median() <= 1.05 * theirs.median()


@pytest.mark.integration
def test_is_as_near_as_fab(net, images):
    pixels, labels = images[0][:16], net(images[0][:16]).argmax(1)
    ours, fab = (distances(f"{spec}:minimal=true", NORM, net, (pixels, labels)) for spec in ("ead", "fab-t"))
    assert ours.median() <= 1.03 * fab.median()


def test_the_published_objective_gives_way_on_l1_for_l2(net, images):
    pixels, labels = images[0][:16], net(images[0][:16]).argmax(1)
    spec = "ead:steps=100,searches=7,minimal=true"
    found = [run(f"{spec},squared={squared}", net, pixels, labels, Threat("l1", 1e-3)) for squared in (0, 1)]
    for norm, nearer in (("l1", 0), ("l2", 1)):
        medians = [Threat(norm, 1).distance(images, pixels).median() for images in found]
        assert medians[nearer] < medians[1 - nearer]


def test_confidence_sets_the_margin(net, images):
    pixels, labels = images[0][:8], net(images[0][:8]).argmax(1)
    near, sure = (
        distances(f"ead:steps=40,searches=6,minimal=true,confidence={k}", NORM, net, (pixels, labels)) for k in (0, 2)
    )
    found = near.isfinite()
    assert (sure > near)[found].all() and found.sum() > 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps=0", "attack 'ead': steps must be at least 1, got 0"),
        ("searches=0", "attack 'ead': searches must be at least 1, got 0"),
        ("initial_const=-1", "attack 'ead': initial_const must be a finite positive number, got -1"),
        ("step_size=0", "attack 'ead': step_size must be a finite positive number, got 0"),
        ("confidence=-1", "attack 'ead': confidence must be a finite number >= 0, got -1"),
        ("squared=-1", "attack 'ead': squared must be a finite number >= 0, got -1"),
        ("beta=-1", "attack 'ead': beta must be a finite number >= 0, got -1"),
    ],
)
def test_impossible_options_are_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(f"ead:{options}")
