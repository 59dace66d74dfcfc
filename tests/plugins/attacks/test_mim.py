"""The momentum method: against a peer library, and what the momentum does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attack_helpers import TwoClasses, run
from peer_libraries import Idle, equal_share, torchattacks
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_matches_torchattacks(decay, net, images):
    theirs = torchattacks().MIFGSM(net, eps=0.03, alpha=0.006, steps=10, decay=decay)(*images)
    ours = run(f"mim:step_size=0.2,decay={decay},scale=raw", net, *images, Threat("linf", 0.03), filter_=Idle)
    assert equal_share(ours, theirs) >= 0.999


@pytest.mark.parametrize("threat", [Threat("linf", 0.03), Threat("l2", 0.5)], ids=str)
def test_without_momentum_it_equals_bim(threat, net, images):
    bim, bare, carried = (
        run(spec, net, *images, threat) for spec in ("bim:steps=5,step_size=0.2", "mim:steps=5,decay=0", "mim:steps=5")
    )
    assert ((bim - bare).abs() < 1e-6).double().mean() >= 0.999
    assert ((bim - carried).abs() > 1e-4).double().mean() > 0.01


class Hill(nn.Module):
    """The logit of class 1 grows with the first pixel up to 0.35, and from there falls ten times as steeply."""

    def forward(self, pixels: Tensor) -> Tensor:
        first = pixels[:, 0, 0, 0]
        height = torch.where(first < 0.35, first, 3.85 - 10 * first)
        return torch.stack([torch.ones_like(height), height], 1)


@pytest.mark.parametrize(
    ("decay", "path"),
    [
        # Beyond the top the new gradient cancels the old one, however much longer it is; the next turns back.
        (1.0, [0.4, 0.4, 0.3]),
        (0.5, [0.4, 0.3, 0.4]),
        (2.0, [0.4, 0.5, 0.6]),
    ],
)
def test_momentum_weighs_gradients_by_direction_and_age(decay, path):
    pixels, threat = torch.full((1, 1, 1, 1), 0.3), Threat("linf", 0.3)
    for steps, end in enumerate(path, 1):
        spec = f"mim:steps={steps},step_size={1 / 3},decay={decay}"
        found = run(spec, Hill(), pixels, torch.tensor([0]), threat, filter_=Idle)
        assert found.item() == pytest.approx(end, abs=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_vanished_gradient_adds_nothing(norm, images):
    flat = TwoClasses(torch.zeros(1, 1, 28, 28), 1.0)
    found = run("mim", flat, images[0], torch.ones_like(images[1]), Threat(norm, 0.1))
    assert torch.equal(found, images[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps=0", "attack 'mim': steps must be at least 1, got 0"),
        ("step_size=0", "attack 'mim': step_size is a fraction of eps and must be positive, got 0.0"),
        ("decay=-1", "attack 'mim': decay must be a finite number >= 0, got -1.0"),
        ("decay=inf", "attack 'mim': decay must be a finite number >= 0, got inf"),
        ("loss=hinge", "attack 'mim': loss must be one of ce, dlr, margin, targeted"),
    ],
)
def test_impossible_options_are_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(f"mim:{options}")
