"""Other libraries' attacks through the adapters: every route, equal to the library alone, no side effects."""

from __future__ import annotations

import random
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import purifier
from attack_helpers import NoConfig, Noisy, Same, run
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator

MODULES = ("foolbox", "torchattacks", "art", "pyautoattack")
CLIMBS = {
    "foolbox": "foolbox:LinfPGD,steps=5,rel_stepsize=0.5",
    "torchattacks": "torchattacks:PGD,steps=5",
    "art": "art:ProjectedGradientDescent,max_iter=5,num_random_init=1",
    "pyautoattack": "pyautoattack:apgd-ce,n_iter=5,n_restarts=1",
}
ASKS = {
    "foolbox": "foolbox:HopSkipJumpAttack,steps=1,initial_gradient_eval_steps=10",
    "torchattacks": "torchattacks:Square,n_queries=20",
    "art": "art:SquareAttack,max_iter=20",
    "pyautoattack": "pyautoattack:square,n_queries=20",
}
SMALL = Threat("linf", 0.06)


@pytest.fixture(params=MODULES)
def library(request) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("fashion-mnist:test:24")


def test_an_audit_runs_them_along_every_route(library, net, few):
    climbs, asks = CLIMBS[library], ASKS[library]
    guarded = purifier.guard(net, "blur:sigma=2")
    report = purifier.audit(guarded, few, eps=0.08, attacks=[climbs, asks], batch_size=16, probes=4)
    rows = {(row.attack, row.model, row.route): row for row in report.rows}
    assert not [row.error for row in report.rows if row.error]
    clean = rows["none", "guarded", None].result.share
    assert {route for attack, model, route in rows if attack == climbs and model == "guarded"} == {
        "exact",
        "bpda",
        "oblivious",
    }
    for route in ("exact", "bpda"):
        assert rows[climbs, "guarded", route].gradients_per_image > 0
        assert rows[climbs, "guarded", route].result.share < clean
    exact, oblivious = (rows[climbs, "guarded", route].result.share for route in ("exact", "oblivious"))
    assert exact < clean / 2 and exact < oblivious
    row = rows[asks, "guarded", "none"]
    assert row.gradients_per_image == 0 and row.queries_per_image > 5
    assert (asks, "guarded", "exact") not in rows


def _directly(library: str, net: nn.Module, pixels: Tensor, labels: Tensor, eps: float) -> tuple[str, str, Tensor]:
    """A deterministic spec, its norm, and the images that the library alone makes."""
    if library == "foolbox":
        import foolbox

        attack = foolbox.attacks.L2BasicIterativeAttack(steps=4, rel_stepsize=0.3)
        found = attack(foolbox.PyTorchModel(net, bounds=(0, 1)), pixels, labels, epsilons=eps)[1]
        return "foolbox:L2BasicIterativeAttack,steps=4,rel_stepsize=0.3,scale=raw", "l2", found
    if library == "torchattacks":
        import torchattacks

        found = torchattacks.PGDL2(net, eps=eps, alpha=eps / 5, steps=4, random_start=False)(pixels, labels)
        return "torchattacks:PGDL2,steps=4,random_start=false,scale=raw", "l2", found
    if library == "art":
        from art.attacks.evasion import ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier

        alone = PyTorchClassifier(net, nn.CrossEntropyLoss(), pixels.shape[1:], 10, clip_values=(0, 1))
        attack = ProjectedGradientDescent(alone, norm=2, eps=eps, eps_step=eps / 3, max_iter=4, verbose=False)
        return (
            "art:ProjectedGradientDescent,max_iter=4,scale=raw",
            "l2",
            torch.from_numpy(attack.generate(pixels.numpy(), labels)),
        )
    from pyautoattack import AutoAttack

    alone = AutoAttack(net, attacks=["fab-t"], version="custom", norm="L2", eps=eps, seed=0)
    alone.fab.n_iter = 8
    return "pyautoattack:fab-t,n_iter=8,scale=raw", "l2", alone.run_standard_evaluation(pixels, labels)[0]


@pytest.mark.filterwarnings("ignore")
def test_results_match_the_library_alone(library, net, images):
    pixels, labels = (part[:12] for part in images)
    spec, norm, alone = _directly(library, net, pixels, labels, 0.8)
    ours = run(spec, net, pixels, labels, Threat(norm, 0.8))
    assert (net(alone).argmax(1) != labels).sum() > 4
    assert ((ours - alone).abs() < 1e-5).double().mean() >= 0.999


@pytest.mark.parametrize(
    ("spec", "norm", "eps"),
    [
        ("foolbox:LinfFastGradientAttack", "linf", 0.06),
        ("foolbox:L1FastGradientAttack", "l1", 0.8),
        ("torchattacks:FGSM", "linf", 0.06),
        ("torchattacks:APGD", "l2", 0.8),
        ("art:FastGradientMethod", "linf", 0.06),
        ("art:FastGradientMethod", "l2", 0.8),
        ("art:FastGradientMethod", "l1", 0.8),
        ("pyautoattack:apgd-ce,n_iter=5,n_restarts=1", "linf", 0.06),
        ("pyautoattack:apgd-ce,n_iter=5,n_restarts=1", "l1", 6.0),
    ],
)
def test_eps_and_norm_come_from_the_threat(spec, norm, eps, net, images):
    pytest.importorskip(spec.partition(":")[0])
    pixels, labels = (part[:12] for part in images)
    longest = []
    for budget in (eps / 2, eps):
        threat = Threat(norm, budget)
        longest.append(threat.distance(run(spec, net, pixels, labels, threat), pixels).max().item())
        assert longest[-1] < budget * 1.0001
    # The box cuts some off.
    assert longest[1] == pytest.approx(2 * longest[0], rel=0.1) and longest[0] > eps / 8


def test_the_seed_decides_what_the_library_draws(library, net, images):
    pixels, labels = (part[:12] for part in images)
    one, same, other = (run(CLIMBS[library], net, pixels, labels, SMALL, seed=seed) for seed in (0, 0, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_global_generators_and_tracing_are_left_unchanged(library, net, images):
    def state() -> tuple[bytes, ...]:
        arrays = np.random.get_state()
        return bytes(torch.get_rng_state().tolist()), arrays[1].tobytes(), repr(random.getstate()).encode()

    before, tracing = state(), sys.gettrace()

    def trace(*_: object) -> None:
        return None

    sys.settrace(trace)
    try:
        for spec in (CLIMBS[library], ASKS[library]):
            run(spec, net, images[0][:6], images[1][:6], SMALL)
        kept = sys.gettrace()
    finally:
        sys.settrace(tracing)
    assert kept is trace and state() == before


def test_a_random_purifier_is_asked_with_fresh_noise_and_its_draws_are_averaged(library, net, images):
    pixels, labels = (part[:12] for part in images)
    spent = []
    for eot in (1, 3):
        target = Target(
            TorchPixelClassifier(net, Preprocessing()),
            Noisy(NoConfig()),
            "exact",
            SampleGenerator(1, range(12)),
            eot=eot,
        )
        found = read_attack(CLIMBS[library]).attack.perturb(
            target, pixels, labels, SMALL, SampleGenerator(0, range(12))
        )
        spent.append(target.spent)
        judged = net(Noisy(NoConfig()).purify(SMALL.project(found, pixels), torch.randn(pixels.shape)))
        assert (judged.argmax(1) == labels).sum() < (net(pixels).argmax(1) == labels).sum() - 3
    assert spent[1].queries > 2 * spent[0].queries and spent[1].gradients > 2 * spent[0].gradients > 0


def test_warnings_inside_are_shown_but_not_raised(library, net, images):
    class Warns(Same):
        def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
            warnings.warn("the purifier is tired", stacklevel=1)
            return pixels

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        run(CLIMBS[library], net, images[0][:4], images[1][:4], SMALL, filter_=Warns)
        assert warnings.filters[0][0] == "error"
    assert "the purifier is tired" in [str(one.message) for one in seen]
