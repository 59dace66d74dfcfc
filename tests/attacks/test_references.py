"""Ours against AutoAttack as pyautoattack packages it: never an image more left standing than chance allows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attack_stage import NoConfig, Same, run
from purifier import Purifier, Threat
from purifier.data import load_data

pytest.importorskip("pyautoattack")

OURS = ("apgd-ce:steps=12", "apgd-t:steps=12,targets=2", "fab-t:steps=12,targets=2", "square:queries=60")
THEIRS = "pyautoattack:standard,n_iter=12,n_target_classes=2,n_queries=60"


class Smooth(Same):
    """A guard's purifier that is no identity: the mean of each pixel and its neighbours."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)


@pytest.fixture(scope="module")
def hardened() -> nn.Module:
    """A small classifier trained on FGSM's images (Goodfellow et al. 2014), from a random start (Wong et al. 2020)."""
    pixels, labels = load_data("fashion-mnist:train:3000").batch(range(3000))
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(5):
        for part in torch.randperm(3000).split(50):
            optimizer.zero_grad()
            _loss(net, _fgsm(net, pixels[part], labels[part], 0.06), labels[part]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("which", "threat"),
    [
        ("undefended", Threat("linf", 0.05)),
        ("undefended", Threat("l2", 0.9)),
        ("undefended", Threat("l1", 8.0)),
        ("hardened", Threat("linf", 0.15)),
        ("guarded", Threat("linf", 0.07)),
    ],
    ids=str,
)
def test_ours_leave_no_more_standing_than_the_reference(which, threat, net, hardened, images):
    module = hardened if which == "hardened" else net
    filter_ = Smooth if which == "guarded" else Same
    pixels, labels = images
    clean = _right(module, filter_, pixels, labels)
    ours, theirs = (_standing(specs, module, filter_, clean, pixels, labels, threat) for specs in (OURS, [THEIRS]))
    assert ours.sum() <= theirs.sum() + 1
    # Where all fall or none, or one step does as well as a search, weak attacks would pass too.
    step = _standing(["pgd:steps=1"], module, filter_, clean, pixels, labels, threat)
    assert 4 < theirs.sum() < step.sum() - 1


def _standing(
    specs: tuple[str, ...],
    module: nn.Module,
    filter_: type[Purifier],
    right: Tensor,
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
) -> Tensor:
    """Which images are right after each attack in turn, (N,); what is fooled is not attacked again."""
    right = right.clone()
    for spec in specs:
        left = right.nonzero().squeeze(1)
        found = run(spec, module, pixels[left], labels[left], threat, filter_=filter_)
        judged = threat.project(found, pixels[left])
        assert (threat.distance(judged, pixels[left]) <= threat.eps + 1e-6).all()
        right[left] = _right(module, filter_, judged, labels[left])
    return right


def _right(module: nn.Module, filter_: type[Purifier], pixels: Tensor, labels: Tensor) -> Tensor:
    return module(filter_(NoConfig()).purify(pixels)).argmax(1) == labels


def _fgsm(net: nn.Module, pixels: Tensor, labels: Tensor, eps: float) -> Tensor:
    start = pixels + eps * (2 * torch.rand_like(pixels) - 1)
    leaf = start.clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(_loss(net, leaf, labels), leaf)
    return Threat("linf", eps).project(leaf + 1.25 * eps * gradient.sign(), pixels).detach()


def _loss(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(pixels), labels)
