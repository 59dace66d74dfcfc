"""Every built-in attack in one table: the conformance kit, budgets, batches, seeds, known optima."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import purifier
from attack_helpers import Noisy, Same, linear, run
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.testing import check_attack
from purifier.vocabulary import Norm
from query_helpers import in_other_order, same_share

ALL: tuple[Norm, ...] = ("linf", "l2", "l1")
TWO: tuple[Norm, ...] = ("linf", "l2")
EPS: dict[Norm, float] = {"linf": 0.08, "l2": 1.5, "l1": 15}


@dataclass(frozen=True)
class Row:
    """An attack that a test can afford, and what is expected of it.

    Of 12 real images it misclassifies at least ``fools``, within ``times`` the budgets above. On a linear classifier
    ``linear`` (by default the same spec) misclassifies all images whose distance from the boundary is below ``near``
    times the budget, among as many ``classes``; None: how many is not known. ``within_budget``: even before the core
    projects.
    """

    spec: str
    norms: tuple[Norm, ...] = ALL
    fools: int = 6
    times: float = 1
    linear: str = ""
    near: float | None = 0.95
    classes: tuple[int, ...] = (2,)
    random: bool | None = False
    """None: only a second start is random, and few images need one."""
    within_budget: bool = True
    library: str = ""


ROWS = [
    Row("fgsm", TWO, near=0.999),
    Row("fgsm", ("l1",), near=None),
    Row("rfgsm", TWO, fools=3, linear="rfgsm:alpha=0", near=0.999, random=True),
    Row("rfgsm", ("l1",), near=None, random=True),
    # The random step can lead away by alpha, which leaves at least 1 - 2 alpha.
    Row("rfgsm:alpha=0.2,loss=margin", TWO, near=0.6, random=True),
    Row("pgd:steps=5", TWO, linear="pgd", random=True),
    Row("pgd:steps=5,restarts=2,loss=margin", TWO, random=True),
    Row("pgd:steps=5,random_start=false", TWO, near=0.999),
    Row("pgd:steps=8", ("l1",), near=None, random=True),
    Row("pgd:steps=8,moved=0.2,random_start=false,loss=dlr", ("l1",), near=None),
    Row("joint:steps=10", TWO, linear="joint:steps=20", random=True),
    Row("bim:steps=5", TWO, near=0.999),
    Row("mim:steps=5", TWO, near=0.999),
    Row("apgd-ce:steps=8", linear="apgd-ce:steps=30", near=0.99, random=True),
    Row("apgd-dlr:steps=8,restarts=2", linear="apgd-dlr:steps=30", near=0.99, random=True),
    Row("apgd-t:steps=8,targets=4,finalists=2", linear="apgd-t:steps=30", near=0.99, random=True),
    Row("fab-t:steps=6,targets=2", linear="fab-t:steps=10", near=0.94, classes=(2, 4), within_budget=False),
    Row("fab-t:steps=4,targets=2,restarts=2", ("l2",), near=None, within_budget=False),
    Row("deepfool:steps=10,candidates=3", TWO, linear="deepfool", classes=(2, 4), within_budget=False),
    Row("cw:steps=15,searches=4", ("l2",), 3, 1, "cw:steps=60,step_size=0.001", 0.8, (2, 4), within_budget=False),
    Row("ead:steps=10,searches=4", ("l1",), linear="ead:steps=100", near=0.8, classes=(2, 4), within_budget=False),
    Row("fmn:steps=8", linear="fmn", near=0.8, classes=(2, 4), within_budget=False),
    Row("square:queries=40,restarts=2", ("linf",), 5, 2, linear="square:queries=600", near=0.85, random=True),
    Row("square:queries=40,restarts=2", ("l2",), 5, 2, linear="square:queries=600", near=0.6, random=True),
    Row("spsa:steps=8,samples=16,lr=0.3", TWO, 4, 2, linear="spsa:steps=30,samples=40,lr=0.2", near=0.85, random=True),
    Row("hopskipjump:queries=300,init_samples=20", TWO, 4, 2, near=None, random=True, within_budget=False),
    Row("transfer:attacks=fgsm+pgd:steps=5", TWO, linear="transfer", random=True),
    Row("latent-match:steps=10,guide_steps=10,confidence=1,restarts=2", TWO, times=2, near=None, random=None),
    Row("noise", fools=1, times=8, near=None, random=True),
    # Attacks of other libraries that draw nothing: what they draw, they draw for a whole batch.
    Row("foolbox:LinfBasicIterativeAttack,steps=5", ("linf",), library="foolbox"),
    Row("foolbox:L2DeepFoolAttack,steps=5", ("l2",), fools=3, within_budget=False, library="foolbox"),
    Row("foolbox:L1FastGradientAttack", ("l1",), fools=4, near=None, library="foolbox"),
    Row("torchattacks:BIM", ("linf",), library="torchattacks"),
    Row("torchattacks:PGDL2,random_start=false", ("l2",), library="torchattacks"),
    Row("art:ProjectedGradientDescent,max_iter=5", TWO, library="art"),
    Row("art:FastGradientMethod", ("l1",), fools=0, near=None, library="art"),
    Row("pyautoattack:fab-t,n_iter=5", TWO, library="pyautoattack"),
]


def cases(rows: list[Row]) -> list[object]:
    """Each row in each of its norms."""
    return [pytest.param(row, norm, id=f"{row.spec}-{norm}") for row in rows for norm in row.norms]


every_attack = pytest.mark.parametrize(("row", "norm"), cases(ROWS))


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest) -> None:
    """Skip the attacks of a library that is not installed."""
    row = request.node.callspec.params.get("row") if hasattr(request.node, "callspec") else None
    if row is not None and row.library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(row.library)


class Space(Same):
    """Its latents are the pixels."""

    def latent_of(self, pixels: Tensor) -> Tensor:
        return pixels

    def decoded(self, latent: Tensor) -> Tensor:
        return latent.clamp(0, 1)


class NoisySpace(Space, Noisy):
    pass


class Whole(nn.Module):
    """Sums of whole numbers: rounding, which differs from batch to batch, moves no image over a boundary."""

    def forward(self, pixels: Tensor) -> Tensor:
        halves = (pixels * 2**16).round().double().flatten(1).unflatten(1, (4, -1)).sum(2)
        return halves - halves.mean(1, keepdim=True) if len(halves) else halves


def test_every_built_in_attack_has_a_row():
    built_in = {entry.name for entry in purifier.attacks.entries() if entry.value.startswith("purifier.plugins.")}
    assert {row.spec.partition(":")[0] for row in ROWS} == built_in


@every_attack
def test_passes_the_conformance_kit(row, norm):
    check_attack(read_attack(row.spec).attack, norm=norm, eps=0.1)


@every_attack
def test_fools_real_images_within_the_budget(row, norm, net, images):
    pixels, labels = (part[:16] for part in images)
    threat = Threat(norm, row.times * EPS[norm])
    before = pixels.clone(), labels.clone()
    found = run(row.spec, net, pixels, labels, threat, filter_=Space)
    assert torch.equal(pixels, before[0]) and torch.equal(labels, before[1])
    assert found.min() >= 0 and found.max() <= 1 and not found.requires_grad
    judged = threat.project(found, pixels)
    # In float64: a float32 sum over an image rounds by more than is looked for.
    reached = [threat.distance(one.double(), pixels.double()) for one in (found, judged)]
    assert (reached[0 if row.within_budget else 1] <= threat.eps * (1 + 1e-5)).all()
    clean, attacked = (net(one).argmax(1) == labels for one in (pixels, judged))
    assert clean.sum() == 12 and attacked.sum() <= 12 - row.fools
    again, other = (run(row.spec, net, pixels, labels, threat, filter_=Space, seed=seed) for seed in (0, 5))
    assert torch.equal(again, found)
    assert row.random is None or torch.equal(other, found) == (not row.random)


@pytest.mark.parametrize("filter_", [Space, NoisySpace])
@pytest.mark.parametrize(("row", "norm"), cases([row for row in ROWS if not row.library]))
def test_an_images_result_does_not_depend_on_its_batch_or_its_order(row, norm, filter_, net, images):
    pixels, labels = (part[:7] for part in images)
    module = Whole() if row.spec.startswith("hopskipjump") else net
    labels = labels if module is net else module(pixels).argmax(1)
    threat = Threat(norm, row.times * EPS[norm] / 2)
    whole = run(row.spec, module, pixels, labels, threat, filter_=filter_)
    apart = in_other_order(row.spec, module, pixels, labels, threat, batch=3, filter_=filter_, route="exact")
    assert not torch.equal(whole, pixels)
    assert same_share(whole, apart) >= 0.999


@pytest.mark.parametrize(
    ("row", "norm", "classes"),
    [
        pytest.param(row, norm, classes, id=f"{row.linear or row.spec}-{norm}-{classes}")
        for row in ROWS
        for norm in row.norms
        for classes in row.classes
        if row.near is not None
    ],
)
def test_on_a_linear_classifier_exactly_the_images_within_eps_flip(row, norm, classes):
    module, pixels, labels, distance = linear(classes, norm, 40)
    threat = Threat(norm, distance.median().item())
    found = threat.project(run(row.linear or row.spec, module, pixels, labels, threat, filter_=Space), pixels)
    flipped = module(found).argmax(1) != labels
    assert flipped[distance < row.near * threat.eps].all()
    assert not flipped[distance > 1.001 * threat.eps].any()
    assert flipped.any() and not flipped.all()
