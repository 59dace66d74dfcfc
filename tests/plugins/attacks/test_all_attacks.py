"""Every built-in attack in one table: the conformance kit, budgets, batches, seeds, known optima."""

from __future__ import annotations

import warnings

import pytest
import torch
from attack_table import EPS, ROWS, NoisySpace, Row, Space
from torch import Tensor, nn

import purifier
from attack_helpers import linear, run
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.testing import check_attack
from query_helpers import in_other_order, same_share


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
    pixels, labels = (part[:5] for part in images)
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
