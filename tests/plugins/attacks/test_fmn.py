"""FMN: known distances for every loss, and as near as foolbox."""

from __future__ import annotations

import pytest

from minimal_norm_helpers import (
    check_edge,
    check_nan,
    check_nearest,
    check_oblivious,
    check_random,
    distances,
)
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError

NORMS = ["linf", "l2", "l1"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
def test_finds_the_smallest_distance_on_a_linear_classifier(classes, norm):
    check_nearest("fmn:minimal=true", classes, norm)


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_every_loss_finds_the_smallest_distance(loss):
    check_nearest(f"fmn:minimal=true,loss={loss}", 2, "l2")


def test_on_the_route_oblivious_images_go_beyond_the_edge(net, images):
    check_oblivious("fmn:steps=15", "linf", net, images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_the_route_oblivious_images_lie_on_the_budgets_edge(norm, net, images):
    check_edge("fmn:steps=20", norm, net, images)


@pytest.mark.parametrize("norm", NORMS)
def test_recovers_from_nan_gradients(norm, net, images):
    check_nan("fmn:steps=20", norm, net, images)


def test_under_a_random_purifier_the_images_fool_fresh_noise(net, images):
    check_random("fmn:steps=20", "l2", net, images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:foolbox", "ignore::DeprecationWarning:eagerpy")
@pytest.mark.parametrize("norm", NORMS)
def test_as_near_as_foolbox(norm, net, images):
    # The projection of foolbox 3.3.4's L2FMNAttack does nothing, which makes its l2 the easiest to beat.
    import foolbox

    name = {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack"}[norm]
    attack = getattr(foolbox.attacks, name)(steps=30)
    pixels, labels = images[0][:24], net(images[0][:24]).argmax(1)
    found = attack(foolbox.PyTorchModel(net, bounds=(0, 1)), pixels, labels, epsilons=None)[1]
    theirs = Threat(norm, 1).distance(found, pixels).where(net(found).argmax(1) != labels, float("inf"))
    ours = distances("fmn:steps=30,minimal=true", norm, net, (pixels, labels))
    assert ours.median() <= 1.05 * theirs.median()
    assert ours.isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps=0", "attack 'fmn': steps must be at least 1, got 0"),
        ("alpha=0", "attack 'fmn': alpha must be a finite positive number, got 0"),
        ("gamma=1", r"attack 'fmn': gamma must be in \(0, 1\), got 1"),
        ("loss=cw", "attack 'fmn': loss must be one of ce, dlr, margin, targeted, got 'cw'"),
    ],
)
def test_impossible_options_are_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(f"fmn:{options}")
