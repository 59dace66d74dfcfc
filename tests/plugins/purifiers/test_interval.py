"""Bounds of the certified purifier against samples, exact verification, float64, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from small_certified import random_certified
from torch import Tensor
from torch.nn import functional as F

from purifier.plugins.purifiers._interval import Interval, Layer, rounding
from purifier.plugins.purifiers.certified import Certified

pytestmark = pytest.mark.usefixtures("one_thread")


def changes(pixels: Tensor, norm: str, eps: float, count: int, seed: int = 0) -> Tensor:
    """Images (count, C, H, W) in [0, 1] within a threat of one (C, H, W), half of them at its edge."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((count, *pixels.shape), generator=generator)
    corners = noise.sign() * eps
    inside = (torch.rand(noise.shape, generator=generator) * 2 - 1) * eps
    if norm == "l2":
        corners = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * eps
        inside = corners * torch.rand((count, 1, 1, 1), generator=generator)
    moved = torch.where(torch.rand((count, 1, 1, 1), generator=generator) < 0.5, corners, inside)
    return (pixels + moved * (1 - 1e-6)).clamp(0, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.1, 0.6])
def test_no_image_within_a_threat_leaves_the_bounds(norm: str, eps: float) -> None:
    model = random_certified((2, 9, 7), classes=5, channels=4, depth=2, hidden=12)
    pixels = torch.rand((3, 2, 9, 7), generator=torch.Generator().manual_seed(1)).round(decimals=1)
    best = model.scores(pixels).argmax(1)
    margins = model.margins(pixels.double(), best, norm, eps)
    exact = model.margins(pixels, best, norm, eps)  # float32 has to allow for more
    assert (exact <= margins + 1e-12).all() and (margins - exact).max() < 1e-3
    for place in range(3):
        scores = model.scores(changes(pixels[place], norm, eps, 4000))
        gaps = scores[:, best[place], None] - scores
        assert (gaps.amin(0) >= margins[place]).all() and (gaps.amin(0) >= exact[place]).all()
        assert eps > 0 or (gaps.amin(0) - margins[place]).max() < 1e-4


def test_bounds_only_widen_with_the_threat_and_l2_is_inside_linf() -> None:
    model = random_certified((1, 8, 8), classes=4, channels=3, depth=2, hidden=8)
    pixels = torch.rand((4, 1, 8, 8), generator=torch.Generator().manual_seed(2)).double()
    best = model.scores(pixels.float()).argmax(1)
    before = model.margins(pixels, best, "linf", 0.0)
    for eps in (0.01, 0.02, 0.05, 0.2):
        box, ball = (model.margins(pixels, best, norm, eps) for norm in ("linf", "l2"))
        assert (box <= before).all() and (ball >= box - 1e-12).all() and (ball > box).any()
        before = box
    each = torch.tensor([0.01, 0.02, 0.05, 0.2], dtype=torch.float64).view(-1, 1, 1, 1)
    together = model.margins(pixels, best, "linf", each)
    for place, eps in enumerate(each.flatten().tolist()):
        assert torch.equal(together[place], model.margins(pixels, best, "linf", eps)[place])


@pytest.mark.parametrize("seed", range(5))
def test_bounds_are_below_the_exact_minimum(seed: int) -> None:
    """The exact smallest margin of a tiny net is the solution of a mixed-integer program (Tjeng et al. 2019)."""
    model = random_certified((1, 4, 4), seed=seed, classes=3, channels=2, depth=1, hidden=4)
    pixels = torch.rand((1, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    best = model.scores(pixels).argmax(1)
    eps, loose = 0.05, 0
    bounds = model.margins(pixels.double(), best, "linf", eps)[0]
    for other in range(3):
        if other != best:
            exact = smallest_gap(model, pixels[0], eps, int(best), other)
            assert bounds[other] <= exact
            loose += exact - bounds[other].item() > 1e-6
    points = model.scores(changes(pixels[0], "linf", eps, 2000))
    gaps = (points[:, best] - points).amin(0)
    assert (gaps >= bounds).all()


def smallest_gap(model: Certified, pixels: Tensor, eps: float, best: int, other: int) -> float:
    """min over the box of score ``best`` minus score ``other``, by scipy's HiGHS, with a binary for each ReLU."""
    first, hidden = dense(model.maps[0], pixels.shape), (model.hidden.run_weight, model.hidden.run_bias)
    low, high = (pixels - eps).clamp(min=0).flatten().double(), (pixels + eps).clamp(max=1).flatten().double()
    sizes, blocks = [low.numel()], []
    lows, highs = [low], [high]
    for weight, bias in (first, hidden):
        weight, bias = weight.double(), bias.double()
        centre, radius = (lows[-1] + highs[-1]) / 2, (highs[-1] - lows[-1]) / 2
        mid, wide = weight @ centre + bias, weight.abs() @ radius
        blocks.append((weight.numpy(), bias.numpy(), (mid - wide).numpy(), (mid + wide).numpy()))
        lows.append((mid - wide).clamp(min=0))
        highs.append((mid + wide).clamp(min=0))
        sizes.append(len(bias))
    return solve(model, blocks, sizes, lows, highs, best, other)


def solve(model: Certified, blocks, sizes, lows, highs, best: int, other: int) -> float:
    """Variables: the values of each layer (after ReLU), then a binary for each ReLU."""
    starts = np.cumsum([0, *sizes])
    count, binaries = int(starts[-1]), int(starts[-1] - sizes[0])
    rows, least, most = [], [], []

    def add(terms: dict[int, float], low: float, high: float) -> None:
        row = np.zeros(count + binaries)
        for at, value in terms.items():
            row[at] += value
        rows.append(row)
        least.append(low)
        most.append(high)

    for layer, (weight, bias, low, high) in enumerate(blocks):
        inputs = range(starts[layer], starts[layer + 1])
        for unit in range(len(bias)):
            out = int(starts[layer + 1]) + unit
            switch = count + out - sizes[0]
            before = {at: -value for at, value in zip(inputs, weight[unit], strict=True)}
            bottom, top = min(low[unit], 0.0), max(high[unit], 0.0)
            add({out: 1.0, **before}, bias[unit], np.inf)  # out >= W x + b
            add({out: 1.0, **before, switch: -bottom}, -np.inf, bias[unit] - bottom)  # on: out <= W x + b
            add({out: 1.0, switch: -top}, -np.inf, 0.0)  # off: out <= 0
    gap = (model.last.weight[best] - model.last.weight[other]).detach().double().numpy()
    goal = np.zeros(count + binaries)
    goal[starts[-2] : starts[-1]] = gap
    ends = [
        np.concatenate([*(part.numpy() for part in parts), fill])
        for parts, fill in ((lows, np.zeros(binaries)), (highs, np.ones(binaries)))
    ]
    found = milp(
        goal,
        constraints=LinearConstraint(np.array(rows), least, most),
        bounds=Bounds(*ends),
        integrality=np.concatenate([np.zeros(count), np.ones(binaries)]),
    )
    assert found.success
    return float(found.fun) + float((model.last.bias[best] - model.last.bias[other]).detach())


def dense(layer: Layer, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A convolution as a matrix and a bias, for images of this shape, flattened."""
    units = torch.eye(math.prod(shape)).view(-1, *shape)
    matrix = layer.applied(units, layer.run_weight, None).flatten(1).T
    places = matrix.shape[0] // len(layer.run_bias)
    return matrix, layer.run_bias.repeat_interleave(places)


def test_the_slack_covers_float32_in_any_order() -> None:
    """Long sums of large values that cancel, in three orders, stay within the slack."""
    generator = torch.Generator().manual_seed(3)
    weight, values = (torch.randn(4000, generator=generator) * 100 for _ in range(2))
    exact = float((weight.double() * values.double()).sum())
    size = float((weight.double() * values.double()).abs().sum())
    products, worst = (weight * values), 0.0
    for order in (torch.arange(4000), products.argsort(), products.abs().argsort(descending=True)):
        total = np.float32(0)
        for value in products[order].numpy():
            total = np.float32(total + value)
        worst = max(worst, abs(float(total) - exact) / size)
    slack = rounding(4000, 0.0, torch.float64)
    assert 0 < worst < slack
    assert rounding(4000, 0.0, torch.float32) > 3 * slack and rounding(4000, 2.0**-10, torch.float64) > slack + 2.0**-9


def test_training_bounds_are_those_of_the_trained_layer_without_rounding() -> None:
    """With the statistics of a batch frozen into the layer, both ways to bound agree."""
    torch.manual_seed(0)
    for layer, shape in ((Layer(3, 5, 5), (6, 3, 8, 8)), (Layer(12, 7), (6, 12))):
        layer, points = layer.double(), torch.rand(shape).double()
        values = Interval.between((points - 0.1).clamp(min=0), (points + 0.1).clamp(max=1))
        ball = (points, 0.1) if points.ndim == 4 else None
        for given in {None, ball}:
            after, bounds = layer.train().trained(points, values, given)
            raw = layer.applied(points, layer.weight, None)
            others = [place for place in range(raw.ndim) if place != 1]
            layer.mean.copy_(raw.mean(others))
            layer.variance.copy_(raw.var(others, correction=0))
            layer.eval()
            assert torch.allclose(layer(points), after, atol=1e-5)
            fresh = layer.bounds(values, 0.0) if given is None else layer.ball_bounds(points, values, 0.1, 0.0)
            for one, other in zip(fresh.ends, bounds.ends, strict=True):
                assert torch.allclose(one, other, atol=1e-4)


def test_an_interval_through_a_relu_is_that_of_its_ends() -> None:
    low, high = torch.tensor([-2.0, -1.0, 0.5]), torch.tensor([-1.0, 3.0, 2.0])
    ends = Interval.between(low, high).rectified().ends
    assert torch.equal(ends[0], F.relu(low)) and torch.equal(ends[1], F.relu(high))
