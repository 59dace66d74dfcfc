"""Threats: budgets hold, the box holds, nothing inside is moved."""

from __future__ import annotations

import pytest
import torch

from purifier import Threat
from purifier.errors import ConfigError
from purifier.torch_tools.norms import norm_of

PIXELS = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
WILD = PIXELS + 3 * torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 0.1), ("linf", 1), ("l2", 0.5), ("l2", 3.0), ("l1", 2.0), ("l1", 20.0)]
)
def test_projection_stays_in_the_ball_and_the_box_and_is_a_fixed_point(norm, eps):
    threat = Threat(norm, eps)
    projected = threat.project(WILD, PIXELS)
    assert projected.min() >= 0 and projected.max() <= 1
    assert (threat.distance(projected, PIXELS) <= eps + 1e-6).all()
    assert (threat.distance(projected, PIXELS) > 0.1 * eps).all()
    torch.testing.assert_close(threat.project(projected, PIXELS), projected)


def test_the_linf_projection_is_the_nearest_point():
    projected = Threat("linf", 0.1).project(WILD, PIXELS)
    expected = torch.minimum(torch.maximum(WILD, PIXELS - 0.1), PIXELS + 0.1).clamp(0, 1)
    assert torch.equal(projected, expected)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_eps_zero_gives_the_clean_image_back_bit_for_bit(norm):
    assert torch.equal(Threat(norm, 0).project(WILD, PIXELS), PIXELS)


def test_norms_are_per_image_over_all_channels():
    delta = torch.zeros(2, 3, 4, 4)
    delta[0, 0, 0, 0], delta[0, 2, 3, 3] = 3, -4
    assert norm_of(delta, "l2").tolist() == [5, 0]
    assert norm_of(delta, "linf").tolist() == [4, 0]
    assert norm_of(delta, "l1").tolist() == [7, 0]


def nearest_by_bisection(perturbed: torch.Tensor, pixels: torch.Tensor, eps: float) -> torch.Tensor:
    """Slow and plain, one image, in doubles: the multiplier of the l1 constraint, by halving."""
    pixels, delta = pixels.double(), (perturbed - pixels).double()

    def shrunk(by: float) -> torch.Tensor:
        return (pixels + delta.sign() * (delta.abs() - by).clamp_min(0)).clamp(0, 1)

    low, high = 0.0, delta.abs().max().item()
    if (shrunk(0) - pixels).abs().sum() <= eps:
        return shrunk(0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (shrunk(middle) - pixels).abs().sum() > eps else (low, middle)
    return shrunk(high)


@pytest.mark.parametrize("eps", [0.01, 0.5, 2.0, 20.0, 45.0])
@pytest.mark.parametrize("spread", [0.02, 3.0])
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(eps, spread):
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(8, 3, 8, 8, generator=generator)
    pixels[:4] = pixels[:4].round()  # against the walls
    perturbed = pixels + spread * torch.randn(pixels.shape, generator=generator)
    perturbed[1] = perturbed[1].clamp(0, 1)
    perturbed[2, :, ::2] = pixels[2, :, ::2]
    perturbed[3] = perturbed[3].sign()  # ties
    found = Threat("l1", eps).project(perturbed, pixels)
    slow = torch.stack([nearest_by_bisection(*one, eps) for one in zip(perturbed, pixels, strict=True)])
    torch.testing.assert_close(found.double(), slow, atol=2e-6, rtol=0)
    assert (Threat("l1", eps).distance(found, pixels) <= eps + 1e-6).all()


def test_the_l1_projection_holds_on_large_images():
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    wild = pixels + torch.randn(pixels.shape, generator=torch.Generator().manual_seed(5))
    for eps in (12.0, 4000.0):
        found = Threat("l1", eps).project(wild, pixels)
        spread = (found - pixels).double().abs().flatten(1).sum(1)
        assert ((spread <= eps + 1e-6) & (spread > eps * (1 - 1e-5))).all()


@pytest.mark.parametrize("eps", [0.5, 20.0])
def test_the_l1_projection_is_idempotent_bit_for_bit(eps):
    threat = Threat("l1", eps)
    projected = threat.project(WILD, PIXELS)
    assert torch.equal(threat.project(projected, PIXELS), projected)
    alone = torch.cat([threat.project(WILD[i : i + 1], PIXELS[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, projected, atol=1e-7, rtol=0)


def test_a_known_l1_projection():
    middle = torch.full((1, 1, 1, 3), 0.5)
    moved = Threat("l1", 0.3).project(middle + torch.tensor([0.4, -0.2, 0.05]), middle)
    # Away from the walls each coordinate shrinks by 0.15, at most to 0 (Duchi et al. 2008).
    torch.testing.assert_close(moved - middle, torch.tensor([[[[0.25, -0.05, 0.0]]]]))
    moved = Threat("l1", 0.7).project(middle + torch.tensor([0.9, -0.3, 0.05]), middle)
    # The first stands at its wall, which leaves 0.2 for the others.
    torch.testing.assert_close(moved - middle, torch.tensor([[[[0.5, -0.2, 0.0]]]]))


@pytest.mark.parametrize(
    ("norm", "eps", "said"),
    [
        ("l0", 0.1, "norm must be one of linf, l2, l1, got 'l0'"),
        ("linf", -0.1, "eps must be a finite number >= 0"),
        ("l2", float("nan"), "eps must be a finite number >= 0"),
        ("l2", "0.1", "eps must be a finite number >= 0"),
        ("linf", 8, "at most 1 for linf .* try 8/255"),
    ],
)
def test_impossible_threats_are_errors(norm, eps, said):
    with pytest.raises(ConfigError, match=said):
        Threat(norm, eps)


def test_a_threat_prints_as_norm_and_eps():
    assert str(Threat("linf", 8 / 255)) == "linf 0.0313725"
