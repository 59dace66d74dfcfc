"""Our attacks against AutoAttack as packaged by pyautoattack: no weaker, up to chance."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from attack_helpers import NoConfig, Same, run
from nets import trained
from purifier import Purifier, Threat

pytest.importorskip("pyautoattack")

OURS = ("apgd-ce:steps=12", "apgd-t:steps=12,targets=2", "fab-t:steps=12,targets=2", "square:queries=60")
THEIRS = "pyautoattack:standard,n_iter=12,n_target_classes=2,n_queries=60"


class Smooth(Same):
    """A purifier: the mean of each pixel and its neighbours."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)


@pytest.fixture(scope="module")
def hardened() -> nn.Module:
    return trained("hardened")


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
def test_our_ensemble_is_as_strong_as_autoattack(which, threat, net, hardened, images):
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
    """Which images are right after each attack in turn, (N,); images once fooled are not attacked again."""
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
