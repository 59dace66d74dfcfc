"""Auto-PGD: against known optima and against pyautoattack; its targets and its cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attack_helpers import NoConfig, Noisy, Same, run
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

ATTACKS = ["apgd-ce:steps=8", "apgd-dlr:steps=8,restarts=2", "apgd-t:steps=8,targets=4,finalists=2"]
THREAT = Threat("linf", 0.06)


def spent(spec: str, net: nn.Module, pixels: Tensor, labels: Tensor, threat: Threat, **options) -> Target:
    """The target after the attack, with its counts."""
    indices = range(len(pixels))
    filter_, route, eot = (options.get(*pair) for pair in (("filter_", Same), ("route", "exact"), ("eot", 1)))
    classifier = TorchPixelClassifier(net, Preprocessing())
    target = Target(classifier, filter_(NoConfig()), route, SampleGenerator(1, indices), eot=eot)
    read_attack(spec).attack.perturb(target, pixels, labels, threat, SampleGenerator(0, indices))
    return target


@pytest.mark.parametrize("spec", ATTACKS)
def test_an_oblivious_attack_ends_no_search_early(spec, net, images):
    pixels, labels = (part[:16] for part in images)
    starts = {"apgd-ce": 8, "apgd-dlr": 16, "apgd-t": 4 + 2 * 8}[spec.partition(":")[0]]
    assert spent(spec, net, pixels, labels, THREAT, route="oblivious").spent.gradients == starts * 16
    near, far = (run(spec, net, pixels, labels, THREAT, route=route) for route in ("exact", "oblivious"))
    near, far = (nn.functional.cross_entropy(net(one), labels) for one in (near, far))
    assert far > near + 0.3


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "spec", ["apgd-ce:steps=10", "apgd-dlr:steps=10", "apgd-t:steps=10", "apgd-t:steps=10,loss=ce"]
)
def test_few_classes(spec, classes, images):
    pixels, _ = images
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(784, classes)).requires_grad_(False)
    labels = linear(pixels).argmax(1)
    wide, narrow = (run(spec, linear, pixels, labels, Threat("linf", eps)) for eps in (0.2, 1e-5))
    assert (linear(wide).argmax(1) != labels).all()
    assert (linear(narrow).argmax(1) == labels).sum() >= 63


def test_targets_reach_what_the_likeliest_class_does_not():
    # Class 1 is likeliest, but out of reach and in the other direction than class 2, which is close by.
    torch.manual_seed(0)
    linear = nn.Linear(4, 5).requires_grad_(False)
    linear.weight[:] = torch.tensor([0.0, -0.1, 0.5, -1, -1]).unsqueeze(1)
    linear.bias[:] = torch.tensor([1.0, 0.9, 0.0, 0, 0])
    module, pixels = nn.Sequential(nn.Flatten(), linear), torch.full((3, 1, 2, 2), 0.3)
    labels = torch.zeros(3, dtype=torch.long)
    threat = Threat("linf", 0.25)
    assert (module(pixels).argsort(1, descending=True)[:, 1] == 1).all()
    assert (module(run("apgd-t:targets=1", module, pixels, labels, threat)).argmax(1) == 0).all()
    for spec in ("apgd-t", "apgd-t:targets=2", "apgd-t:finalists=1", "apgd-t:loss=ce"):
        assert (module(run(spec, module, pixels, labels, threat)).argmax(1) == 2).all()


def test_no_gradient_is_spent_on_images_already_fooled(net, images):
    pixels, _ = images
    wrong = (net(pixels).argmax(1) + 1) % 10
    for spec in ATTACKS:
        target = spent(spec, net, pixels, wrong, THREAT)
        assert target.spent.gradients == 0


@pytest.mark.parametrize(
    ("spec", "gradients"),
    [
        ("apgd-ce:steps=20", 20),
        ("apgd-dlr:steps=20,restarts=3", 60),
        ("apgd-t:steps=20,finalists=9", 9 * 20),
        ("apgd-t:steps=20", 9 * 2 + 3 * 20),
        ("apgd-t:steps=20,targets=3,restarts=2", 3 * 2 * 20),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_each_step_costs_one_gradient_for_images_not_yet_fooled(spec, gradients, norm, net, images):
    pixels, labels = (part[:16][net(images[0][:16]).argmax(1) == images[1][:16]] for part in images)
    holding = spent(spec, net, pixels, labels, Threat(norm, 1e-6)).spent
    assert holding.gradients == gradients * len(pixels)
    assert holding.queries < holding.gradients + 30 * len(pixels)
    falling = spent(spec, net, pixels, labels, Threat(norm, 0.1 if norm == "linf" else 40)).spent
    assert 0 < falling.gradients < 0.8 * holding.gradients


def test_under_a_random_purifier_one_lucky_draw_is_not_enough(net, images):
    pixels, labels = images
    assert spent("apgd-ce:steps=6", net, pixels, labels, THREAT, filter_=Noisy, eot=2).spent.gradients == 12 * 64
    found = run("apgd-ce:steps=12", net, pixels, labels, THREAT, filter_=Noisy)
    noise = torch.randn(3, *found.shape, generator=torch.Generator().manual_seed(0))
    right = [(net(Noisy(NoConfig()).purify(found, one)).argmax(1) == labels).double().mean() for one in noise]
    assert max(right) < 0.5


def test_robust_images_come_back_at_the_highest_loss(net, images):
    pixels, labels = images
    threat = Threat("linf", 0.004)
    apgd, pgd = (run(spec, net, pixels, labels, threat) for spec in ("apgd-ce:steps=30", "pgd:steps=30"))
    holds = (net(apgd).argmax(1) == labels) & (net(pgd).argmax(1) == labels)
    apgd, pgd = (nn.functional.cross_entropy(net(one)[holds], labels[holds], reduction="none") for one in (apgd, pgd))
    assert holds.sum() > 30 and (apgd > 0.995 * pgd).double().mean() > 0.95


def robust(found: Tensor, net: nn.Module, labels: Tensor) -> int:
    return int((net(found).argmax(1) == labels).sum())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.6), ("l1", 6)])
def test_as_strong_as_pgd_and_pyautoattack(norm, eps, net, images, monkeypatch):
    pyautoattack = pytest.importorskip("pyautoattack")
    # It watches the interpreter by sys.settrace, which would end a coverage run.
    monkeypatch.setattr(pyautoattack.autoattack.checks, "check_dynamic", lambda *given, **named: None)
    pixels, labels = (part[:40] for part in images)

    def theirs(attack: str) -> int:
        kind = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
        ensemble = pyautoattack.AutoAttack(net, attacks=[attack], version="custom", norm=kind, eps=eps, seed=0)
        ensemble.apgd.n_restarts = 1
        ensemble.apgd.n_iter = ensemble.apgd_targeted.n_iter = 30
        return robust(ensemble.run_standard_evaluation(pixels, labels, batch_size=64)[0], net, labels)

    def ours(spec: str) -> int:
        return robust(run(spec, net, pixels, labels, Threat(norm, eps)), net, labels)

    cross_entropy, targeted = ours("apgd-ce:steps=30"), ours("apgd-t:steps=30")
    assert 1 < targeted < 20
    assert cross_entropy <= ours("pgd")
    assert cross_entropy <= theirs("apgd-ce") + 1
    assert targeted <= theirs("apgd-t") + 1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("apgd-ce:steps=0", "attack 'apgd-ce': steps and restarts must be at least 1, got 0 and 1"),
        ("apgd-dlr:restarts=0", "attack 'apgd-dlr': steps and restarts must be at least 1, got 100 and 0"),
        ("apgd-dlr:loss=mse", "attack 'apgd-dlr': loss must be one of ce, dlr, margin, targeted, got 'mse'"),
        ("apgd-t:targets=0", "attack 'apgd-t': targets and finalists must be at least 1, got 0 and 3"),
        ("apgd-t:finalists=0", "attack 'apgd-t': targets and finalists must be at least 1, got 9 and 0"),
        ("apgd-t:loss=margin", "attack 'apgd-t': loss must be one of ce, dlr, got 'margin'"),
    ],
)
def test_impossible_options_are_errors(spec, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(spec)
