"""FGSM, randomised FGSM and PGD: against known optima, against foolbox; and what every attack must keep."""

from __future__ import annotations

import pytest
import torch
from attack_stage import NoConfig, Noisy, Same, TwoClasses, check_what_every_attack_keeps, dual_norm, run, two_classes
from torch import Tensor

from purifier import Threat
from purifier.audit import read_attack
from purifier.classifier import TorchPixelClassifier
from purifier.pixels import Preprocessing
from purifier.seeding import SampleGenerator
from purifier.target import Target
from purifier.testing import check_attack

ATTACKS = [
    "fgsm",
    "fgsm:loss=margin",
    "rfgsm",
    "rfgsm:alpha=0.2",
    "pgd:steps=5",
    "pgd:steps=5,restarts=2,loss=margin",
    "pgd:steps=5,random_start=false",
    "joint:steps=10",
]
THREATS = [Threat("linf", 0.06), Threat("l2", 1.2)]


@pytest.mark.parametrize(
    ("spec", "share"),
    [
        ("fgsm", 0.999),
        ("fgsm:loss=margin", 0.999),
        ("rfgsm:alpha=0", 0.999),
        # The random step can lead away by alpha, which leaves at least 1 - 2 alpha.
        ("rfgsm:alpha=0.2", 0.6),
        ("pgd", 0.95),
        ("pgd:steps=20,step_size=0.5,restarts=2,loss=margin", 0.999),
        ("pgd:steps=5,random_start=false", 0.999),
        ("joint:steps=20", 0.95),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_classifier_exactly_the_images_within_eps_flip(spec, share, norm):
    linear, pixels, labels, margin = two_classes()
    distance = margin / dual_norm(linear.weight, norm)
    eps = distance.median().item()
    found = run(spec, linear, pixels, labels, Threat(norm, eps), batch=400)
    flipped = linear(found).argmax(1) != labels
    assert flipped[distance < eps * share].all()
    assert not flipped[distance > eps * 1.001].any()
    assert 100 < flipped.sum() < 250


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


@pytest.mark.parametrize("spec", ATTACKS)
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_what_every_attack_keeps(spec, threat, net, images):
    check_what_every_attack_keeps(spec, threat, net, images)
    assert (threat.distance(run(spec, net, *images, threat), images[0]) <= threat.eps + 1e-6).all()


@pytest.mark.parametrize("spec", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_conformance_kit(spec, norm):
    check_attack(read_attack(spec).attack, norm=norm, eps=0.1)


@pytest.mark.parametrize("spec", ATTACKS)
@pytest.mark.parametrize("filter_", [Same, Noisy])
def test_an_images_result_does_not_depend_on_its_batch(spec, filter_, net, images):
    pixels, labels = (part[:21] for part in images)
    whole, sevens, ones = (
        run(spec, net, pixels, labels, Threat("linf", 0.05), filter_=filter_, batch=batch) for batch in (21, 7, 1)
    )
    for other in (sevens, ones):
        same = ((whole - other).abs() < 1e-5).double().mean()
        assert same >= 0.999


@pytest.mark.parametrize("spec", ["rfgsm", "pgd:steps=3"])
def test_the_seed_names_the_random_start(spec, net, images):
    one, other = (run(spec, net, *images, Threat("linf", 0.02), seed=seed) for seed in (0, 5))
    assert not torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:foolbox", "ignore::DeprecationWarning:eagerpy")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_foolboxs(norm, net, images):
    import foolbox

    attack = (foolbox.attacks.LinfFastGradientAttack if norm == "linf" else foolbox.attacks.L2FastGradientAttack)()
    eps = 0.05 if norm == "linf" else 0.7
    theirs = attack(foolbox.PyTorchModel(net, bounds=(0, 1)), *images, epsilons=eps)[1]
    ours = run("fgsm", net, *images, Threat(norm, eps))
    assert ((ours - theirs).abs() < 1e-5).double().mean() >= 0.999


@pytest.mark.filterwarnings("ignore::DeprecationWarning:foolbox", "ignore::DeprecationWarning:eagerpy")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_foolboxs(norm, net, images):
    import foolbox

    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    pixels, labels = images

    def both(eps: float) -> tuple[Tensor, Tensor]:
        theirs = kind(steps=10, abs_stepsize=0.1 * eps, random_start=False)(model, pixels, labels, epsilons=eps)[1]
        ours = run("pgd:steps=10,step_size=0.1,random_start=false", net, pixels, labels, Threat(norm, eps))
        return ours, theirs

    # In a budget too small to fool anything our strongest iterate is their last one.
    ours, theirs = both(0.002 if norm == "linf" else 0.03)
    standing = net(theirs).argmax(1) == labels
    assert standing.sum() > 30
    assert ((ours - theirs)[standing].abs() < 1e-5).double().mean() >= 0.999
    # In a larger one ours leaves each image at the first success and so fools whatever theirs does.
    ours, theirs = both(0.05 if norm == "linf" else 0.8)
    fooled = net(theirs).argmax(1) != labels
    assert fooled.sum() > 25
    assert (net(ours).argmax(1) != labels)[fooled].all()


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
    assert torch.equal(pgd.perturb(target, pixels, wrong, THREATS[0], SampleGenerator(0, range(64))), pixels)
    assert (target.spent.queries, target.spent.gradients) == (64, 0)
    target = Target(classifier, Same(NoConfig()), "exact", SampleGenerator(0, range(64)))
    pgd.perturb(target, pixels, labels, THREATS[0], SampleGenerator(0, range(64)))
    assert 0 < target.spent.gradients < 40 * 64


def test_under_a_random_purifier_one_lucky_draw_ends_nothing(net, images):
    pixels, labels = images
    classifier = TorchPixelClassifier(net, Preprocessing())
    target = Target(classifier, Noisy(NoConfig()), "exact", SampleGenerator(0, range(64)), eot=2)
    found = read_attack("pgd:steps=6").attack.perturb(target, pixels, labels, THREATS[0], SampleGenerator(1, range(64)))
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
