"""Steps and starts within a threat: lengths, directions, and starts that fill the ball evenly."""

from __future__ import annotations

import pytest
import torch

from purifier import Threat
from purifier.attacking import steps
from purifier.seeding import SampleGenerator
from purifier.torch_tools.norms import norm_of

COUNT = 3000
GREY = torch.full((COUNT, 1, 2, 2), 0.5)
GRADIENT = torch.randn(20, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_starts_fill_the_ball_evenly(norm):
    found = steps.random_start(GREY, Threat(norm, 0.4), SampleGenerator(0, range(COUNT)))
    offset = ((found - GREY) / 0.4).flatten(1)
    # Uniform in a ball of 4 dimensions: radius^4 is uniform, and so is what the ball's shape gives each value.
    radius = norm_of(offset, norm).sort().values
    even = torch.linspace(0, 1, COUNT)
    assert (radius**4 - even).abs().max() < 0.05
    share = {
        "linf": lambda size: size,
        "l1": lambda size: 1 - (1 - size) ** 4,
        # The integral of (1 - x^2)^(3/2), the volume of the ball's slice at x.
        "l2": lambda size: 2 / torch.pi * (size.asin() + size * (1 - size**2).sqrt() * (5 - 2 * size**2) / 3),
    }[norm]
    for value in offset.T:
        assert (share(value.abs().sort().values.clamp_max(1)) - even).abs().max() < 0.05
        assert abs((value > 0).double().mean() - 0.5) < 0.04


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_steps_have_length_1_for_any_gradient(norm, scale):
    step = steps.steepest(GRADIENT * scale, norm)
    torch.testing.assert_close(norm_of(step, norm), torch.ones(20))
    torch.testing.assert_close(step, steps.steepest(GRADIENT, norm))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_gradient_gives_no_step(norm):
    broken = GRADIENT.clone()
    broken[3], broken[4, 0] = torch.nan, torch.nan
    step = steps.steepest(broken, norm)
    assert step.isfinite().all() and not step[3].any() and not step[4, 0].any() and step[4, 1].any()
    assert not steps.steepest(torch.zeros(2, 3, 4, 4), norm).any()


def test_an_l1_step_moves_its_share_of_the_values_equally():
    for share, count in ((0.01, 3), (0.1, 30), (1.0, 300), (1e-9, 1)):
        step = steps.steepest(GRADIENT, "l1", moved=share).flatten(1)
        moves = step != 0
        assert (moves.sum(1) == count).all()
        torch.testing.assert_close(step[moves].abs(), torch.full((20 * count,), 1 / count))
        sizes = GRADIENT.flatten(1).abs()
        assert (sizes.masked_fill(~moves, 9).amin(1) >= sizes.masked_fill(moves, 0).amax(1)).all()


def test_an_l1_step_spends_no_budget_on_values_at_the_box():
    walls = (torch.rand(20, 3, 10, 10, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    step = steps.steepest(GRADIENT, "l1", walls)
    torch.testing.assert_close(norm_of(step, "l1"), torch.ones(20))
    moved = walls + 0.01 * step
    assert moved.min() >= 0 and moved.max() <= 1


def test_a_full_l1_step_is_the_best_within_ball_and_box():
    optimize = pytest.importorskip("scipy.optimize")
    pixels = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    gradient = GRADIENT[:6, :1, :4, :4]
    for eps in (0.2, 1.5, 30.0):
        gain = (gradient * (steps.full_step(gradient, pixels, "l1", eps) - pixels)).flatten(1).sum(1)
        for row, image, slope in zip(gain, pixels.flatten(1).double(), gradient.flatten(1).double(), strict=True):
            # Up and down are two variables each, which cost their size.
            bounds = [(0, 1 - value) for value in image.tolist()] + [(0, value) for value in image.tolist()]
            cost = torch.cat([-slope, slope]).numpy()
            best = optimize.linprog(cost, A_ub=torch.ones(1, 32).numpy(), b_ub=[eps], bounds=bounds)
            assert row.item() == pytest.approx(-best.fun, abs=1e-5)
