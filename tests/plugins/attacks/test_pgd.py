"""FGSM, randomised FGSM, BIM and PGD: known optima, other libraries, cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attack_helpers import NoConfig, Noisy, Same, TwoClasses, dual_norm, run, two_classes
from peer_libraries import Idle, equal_share, foolbox_finds, ignore_deprecations, torchattacks
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator

THREAT = Threat("linf", 0.06)


@pytest.mark.parametrize("spec", ["fgsm", "rfgsm:alpha=0", "pgd:moved=0.01", "pgd"])
def test_in_l1_images_flip_as_far_as_the_moved_values_reach(spec):
    linear, pixels, labels, margin = two_classes()
    distance = margin / dual_norm(linear.weight, "l1")
    eps = distance.median().item()
    assert eps < 0.4  # no box in the way
    flipped = linear(run(spec, linear, pixels, labels, Threat("l1", eps), batch=400)).argmax(1) != labels
    falling = linear.weight.abs().flatten().sort(descending=True).values
    # Equal steps in some values grow a linear loss by the mean of their weights, in the first alone by the largest.
    reach = falling[: 2 if spec == "pgd" else 1].mean() / falling[0]
    assert flipped[distance < eps * reach * 0.97].all()
    assert not flipped[distance > eps * 1.001].any()
    assert flipped.sum() > 50


@pytest.mark.parametrize("spec", ["fgsm", "pgd:steps=10"])
def test_on_real_images_the_box_is_part_of_the_optimum(spec, images):
    pixels, _ = images
    linear = TwoClasses(0.05 * torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)), 0)
    labels = (linear.score(pixels) > 0).long()
    eps = 0.05
    downhill = -linear.weight.sign() * (2 * labels.view(-1, 1, 1, 1) - 1)
    reach = ((pixels + eps * downhill).clamp(0, 1) - pixels) * linear.weight
    gain = reach.flatten(1).sum(1).abs()
    margin = linear.score(pixels).abs()
    flipped = linear(run(spec, linear, pixels, labels, Threat("linf", eps))).argmax(1) != labels
    sure = (gain - margin).abs() > 1e-4
    assert torch.equal(flipped[sure], (gain > margin)[sure])
    assert flipped.any() and not flipped.all()


EPS = {"linf": 0.05, "l2": 0.7}
PEERS = [
    # attack, options of ours, foolbox's name and torchattacks', by norm
    ("fgsm", "", {"linf": "LinfFastGradientAttack", "l2": "L2FastGradientAttack"}, {"linf": "FGSM"}),
    ("bim", "", {"linf": "LinfBasicIterativeAttack", "l2": "L2BasicIterativeAttack"}, {"linf": "BIM"}),
    ("pgd", ",random_start=false", {"linf": "LinfPGD", "l2": "L2PGD"}, {"linf": "PGD", "l2": "PGDL2"}),
]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "options", "foolboxs", "torchattackss"), PEERS, ids=[peer[0] for peer in PEERS])
class TestWithoutARandomStart:
    """No image leaves under a random target, and our last iterate is theirs."""

    pytestmark = ignore_deprecations

    def test_matches_foolbox(self, name, options, foolboxs, torchattackss, norm, net, images):
        eps, steps = EPS[norm], 10
        taken = {} if name == "fgsm" else {"steps": steps, "abs_stepsize": 0.1 * eps, "random_start": False}
        theirs = foolbox_finds(foolboxs[norm], net, images, eps, **taken)
        spec = "fgsm:scale=raw" if name == "fgsm" else f"{name}:steps={steps},step_size=0.1,scale=raw{options}"
        assert equal_share(run(spec, net, *images, Threat(norm, eps), filter_=Idle), theirs) >= 0.999

    def test_matches_torchattacks(self, name, options, foolboxs, torchattackss, norm, net, images):
        if norm not in torchattackss:
            pytest.skip(f"torchattacks has no {name} in {norm}")
        eps, steps = EPS[norm], 10
        taken = {} if name == "fgsm" else {"steps": steps, "alpha": 0.1 * eps}
        taken |= {"random_start": False} if name == "pgd" else {}
        theirs = getattr(torchattacks(), torchattackss[norm])(net, eps=eps, **taken)(*images)
        spec = "fgsm:scale=raw" if name == "fgsm" else f"{name}:steps={steps},step_size=0.1,scale=raw{options}"
        assert equal_share(run(spec, net, *images, Threat(norm, eps), filter_=Idle), theirs) >= 0.999


@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestStoppingAtTheFirstSuccess:
    pytestmark = ignore_deprecations

    def test_fools_whatever_foolbox_fools(self, norm, net, images):
        options = {"steps": 10, "abs_stepsize": 0.1 * EPS[norm], "random_start": False}
        theirs = foolbox_finds("LinfPGD" if norm == "linf" else "L2PGD", net, images, EPS[norm], **options)
        ours = run("pgd:steps=10,step_size=0.1,random_start=false,scale=raw", net, *images, Threat(norm, EPS[norm]))
        fooled = net(theirs).argmax(1) != images[1]
        assert fooled.sum() > 25
        assert (net(ours).argmax(1) != images[1])[fooled].all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:foolbox", "ignore::DeprecationWarning:eagerpy")
def test_in_l1_as_strong_as_foolboxs_sparse_descent(net, images):
    pixels, labels = images
    theirs = foolbox_finds("SparseL1DescentAttack", net, images, 6.0, steps=20)
    ours = run("pgd:steps=20,step_size=0.2,moved=0.01,random_start=false", net, pixels, labels, Threat("l1", 6))
    standing = [(net(found).argmax(1) == labels).sum() for found in (ours, theirs, pixels)]
    assert standing[0] <= standing[1] < standing[2] - 10


def test_pgd_beats_fgsm_and_more_restarts_never_hurt(net, images):
    pixels, labels = images

    def standing(spec: str) -> Tensor:
        return net(run(spec, net, pixels, labels, Threat("linf", 0.08))).argmax(1) == labels

    assert standing("pgd").sum() < standing("fgsm").sum()
    assert not (standing("pgd:steps=5,restarts=3") & ~standing("pgd:steps=5")).any()


def test_pgd_spends_nothing_on_images_already_fooled(net, images):
    pixels, labels = images
    classifier = TorchPixelClassifier(net, Preprocessing())
    wrong = (net(pixels).argmax(1) + 1) % 10
    target = Target(classifier, Same(NoConfig()), "exact", SampleGenerator(0, range(64)))
    pgd = read_attack("pgd").attack
    assert torch.equal(pgd.perturb(target, pixels, wrong, THREAT, SampleGenerator(0, range(64))), pixels)
    assert (target.spent.queries, target.spent.gradients) == (64, 0)
    target = Target(classifier, Same(NoConfig()), "exact", SampleGenerator(0, range(64)))
    pgd.perturb(target, pixels, labels, THREAT, SampleGenerator(0, range(64)))
    assert 0 < target.spent.gradients < 40 * 64


def test_under_a_random_purifier_one_lucky_draw_is_not_enough(net, images):
    pixels, labels = images
    classifier = TorchPixelClassifier(net, Preprocessing())
    target = Target(classifier, Noisy(NoConfig()), "exact", SampleGenerator(0, range(64)), eot=2)
    found = read_attack("pgd:steps=6").attack.perturb(target, pixels, labels, THREAT, SampleGenerator(1, range(64)))
    assert target.spent.gradients == 6 * 2 * 64
    judged = [
        net(Noisy(NoConfig()).purify(found, torch.randn(found.shape, generator=torch.Generator().manual_seed(i))))
        for i in range(3)
    ]
    assert torch.stack([(logits.argmax(1) == labels).double().mean() for logits in judged]).max() < 0.5


def test_a_vanished_gradient_leaves_the_image_in_place(images):
    pixels, labels = images
    for norm in ("linf", "l2"):
        flat = TwoClasses(torch.zeros(1, 1, 28, 28), 1.0)
        found = run("fgsm", flat, pixels, torch.ones_like(labels), Threat(norm, 0.1))
        assert torch.equal(found, pixels)
