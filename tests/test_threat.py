"""Threats: budgets hold, the box holds, nothing inside is moved."""

from __future__ import annotations

import pytest
import torch

from purifier import Threat
from purifier.errors import ConfigError
from purifier.threat import norm_of

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


def test_the_l1_ball_comes_before_the_box_and_its_nearest_point_is_found():
    middle = torch.full((1, 1, 1, 3), 0.5)
    moved = Threat("l1", 0.3).project(middle + torch.tensor([0.4, -0.2, 0.05]), middle)
    # The nearest point shrinks each coordinate by 0.15 and cuts at 0 (Duchi et al. 2008).
    torch.testing.assert_close(moved - middle, torch.tensor([[[[0.25, -0.05, 0.0]]]]))


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
def test_impossible_threats_are_refused(norm, eps, said):
    with pytest.raises(ConfigError, match=said):
        Threat(norm, eps)


def test_a_threat_reads_as_norm_and_eps():
    assert str(Threat("linf", 8 / 255)) == "linf 0.0313725"
