"""The climbs of Auto-PGD: the published schedule, halving and restarts, sparse steps."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from torch import Tensor

from purifier import Threat
from purifier.attacking.attack import attacks

_apgd = importlib.import_module("._apgd", attacks.get("apgd-ce").__module__.rpartition(".")[0])


def test_checkpoints_match_the_paper():
    assert _apgd.checkpoints(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    assert _apgd.checkpoints(1) == {1}


def climb(kind: str, threat: Threat, loss, slope, *, steps: int = 100) -> list[Tensor]:
    """All points of a climb of one image of 5 x 5 values."""
    clean = torch.full((1, 1, 5, 5), 0.5)
    here = clean + 1e-3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    ascent = getattr(_apgd, kind)(clean, here, threat, steps)
    points = []
    for _ in range(steps):
        points.append(ascent.here)
        value = loss(ascent.here)
        ascent.judge(slope(ascent.here), torch.zeros(1, 2), value)
        ascent.move()
    assert ascent.best_value == max(loss(point) for point in points)
    assert torch.equal(loss(ascent.best), ascent.best_value)
    return points


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_momentum_steps_halve_and_converge_inside_the_budget(norm):
    hill = 0.5 + 0.037 * torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))

    def loss(at: Tensor) -> Tensor:
        return -(at - hill).square().flatten(1).sum(1)

    points = climb("MomentumAscent", Threat(norm, 0.3), loss, lambda at: hill - at)
    # The first step is 2 eps long, which the budget cuts to eps.
    assert Threat(norm, 0.3).distance(points[1], points[0]).item() == pytest.approx(0.3, rel=0.02)
    lengths = [(after - before).abs().max().item() for before, after in itertools.pairwise(points)]
    assert max(lengths[95:]) < 0.1 * min(max(lengths[k : k + 10]) for k in (0, 10))
    assert loss(points[-1]) > 0.01 * loss(points[21])


def test_sparse_steps_find_the_few_values_that_matter():
    slope = torch.ones(1, 1, 5, 5)
    slope[0, 0, 2, 1:3] = 10

    def loss(at: Tensor) -> Tensor:
        return (at * slope).flatten(1).sum(1)

    points = climb("SparseAscent", Threat("l1", 0.8), loss, lambda at: slope)
    best = max(points, key=lambda point: loss(point).item())
    assert ((best - 0.5).abs() > 1e-6).sum() == 2
    assert loss(best).item() == pytest.approx(0.5 * slope.sum().item() + 8, rel=1e-5)


def test_selecting_images_does_not_change_their_climb():
    generator = torch.Generator().manual_seed(0)
    clean, hill = torch.rand(2, 4, 1, 5, 5, generator=generator).unbind()
    for kind, threat in (("MomentumAscent", Threat("linf", 0.2)), ("SparseAscent", Threat("l1", 2))):
        whole, part = (getattr(_apgd, kind)(clean, clean, threat, 40) for _ in range(2))
        keep = torch.ones(4, dtype=torch.bool)
        for step in range(40):
            if step == 15:
                keep = torch.tensor([True, False, True, False])
                part.select(keep)
            for ascent, rows in ((whole, torch.ones_like(keep)), (part, keep)):
                away = ascent.here - hill[rows]
                ascent.judge(-away, torch.zeros(int(rows.sum()), 2), -away.square().flatten(1).sum(1))
                ascent.move()
        torch.testing.assert_close(part.best, whole.best[keep])
        assert not torch.equal(part.best, clean[keep])
