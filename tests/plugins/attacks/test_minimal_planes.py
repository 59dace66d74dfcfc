"""The smallest step onto a hyperplane inside the box: against scipy's solvers."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from purifier import attacks
from purifier.torch_tools.norms import norm_of

NORMS = ["linf", "l2", "l1"]


@pytest.fixture(scope="module")
def planes() -> ModuleType:
    """The plugins' module of projections: beside the class that the name ``fab-t`` stands for."""
    package = attacks.get("fab-t").__module__.rpartition(".")[0]
    return sys.modules[f"{package}._minimal_planes"]


def problems() -> tuple[Tensor, Tensor, Tensor]:
    """Points, some on the walls, normals, some 0 in places, and gaps between nothing and all that the box allows."""
    generator = torch.Generator().manual_seed(2)
    points = (1.4 * torch.rand(40, 12, generator=generator) - 0.2).clamp(0, 1)
    normals = torch.randn(40, 12, generator=generator)
    normals[::3, :4] = 0
    share = torch.linspace(-0.98, 0.98, 40)
    room = torch.where(normals * share.sign().unsqueeze(1) > 0, 1 - points, points)
    return points, normals, share * (normals.abs() * room).sum(1)


def smallest(point: np.ndarray, normal: np.ndarray, gap: float, norm: str) -> float:
    """The smallest norm, by linear programming, for l2 by sequential least squares."""
    size, walls = len(point), list(zip(-point, 1 - point, strict=True))
    if norm == "l2":
        plane = {"type": "eq", "fun": lambda step: normal @ step - gap, "jac": lambda step: normal}
        start = np.clip(gap * normal / (normal @ normal), -point, 1 - point)
        best = optimize.minimize(
            lambda step: step @ step, start, jac=lambda step: 2 * step, bounds=walls, constraints=[plane]
        )
        assert best.success
        return float(np.sqrt(best.fun))
    extra = 1 if norm == "linf" else size
    bounded = np.ones((size, 1)) if norm == "linf" else np.eye(size)
    above = np.vstack([np.hstack([np.eye(size), -bounded]), np.hstack([-np.eye(size), -bounded])])
    best = optimize.linprog(
        np.r_[np.zeros(size), np.ones(extra)],
        A_ub=above,
        b_ub=np.zeros(2 * size),
        A_eq=np.r_[normal, np.zeros(extra)][None],
        b_eq=[gap],
        bounds=walls + [(0, None)] * extra,
    )
    assert best.success
    return float(best.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_the_step_reaches_the_plane_in_the_box_and_is_the_smallest(planes, norm):
    points, normals, gaps = problems()
    step = planes.onto_plane(points, normals, gaps, norm)
    assert torch.allclose((normals * step).sum(1), gaps, atol=1e-5)
    assert (points + step).min() >= -1e-6 and (points + step).max() <= 1 + 1e-6
    least = [
        smallest(point.double().numpy(), normal.double().numpy(), gap.item(), norm)
        for point, normal, gap in zip(points, normals, gaps, strict=True)
    ]
    assert torch.allclose(norm_of(step, norm), torch.tensor(least, dtype=torch.float32), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_out_of_reach_leads_to_the_corner_nearest_to_it(planes, norm):
    points, normals, gaps = problems()
    towards = normals * gaps.sign().unsqueeze(1)
    corner = torch.where(towards == 0, points, (towards > 0).float())
    step = planes.onto_plane(points, normals, gaps.sign() * 1e3, norm)
    assert torch.allclose(points + step, corner, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_no_normal_or_no_gap_gives_no_step(planes, norm):
    points, normals, gaps = problems()
    assert torch.equal(planes.onto_plane(points, torch.zeros_like(normals), gaps, norm), torch.zeros_like(points))
    assert planes.onto_plane(points, normals, torch.zeros_like(gaps), norm).abs().max() == 0


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("norm", NORMS)
def test_the_normals_length_does_not_matter(planes, norm, scale):
    points, normals, gaps = problems()
    here, there = (planes.onto_plane(points, normals * s, gaps * s, norm) for s in (1, scale))
    assert torch.allclose(here, there, atol=1e-5)
