"""Looks for errors in the bounds of a ``certified`` purifier: samples, attacks, and another library's bounds.

``python tests/benchmarks/certified_soundness.py --purifier certified.safetensors --images 100 --points 1000000``: of
that many points within the budget of each image's certificate, and where signed gradients lead, none may have a
difference of scores below its bound. If the package bound-propagation is installed, its interval bounds are compared
with ours: they must agree but for rounding, for which ours allow, so that they are lower.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import purifier
from purifier.data.loading import load_data
from purifier.plugins.purifiers.certified import Certified

PART = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--purifier", required=True)
    parser.add_argument("--data", default="fashion-mnist:test")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--points", type=int, default=1_000_000, help="for all images together")
    parser.add_argument("--root")
    given = parser.parse_args()
    model = purifier.load(given.purifier)
    assert isinstance(model, Certified)
    pixels, _ = load_data(given.data, root=given.root).batch(range(given.images))
    for norm, eps in ((model.config.norm, model.config.eps), ("l2", 0.3)):
        sample(model, pixels, norm, eps, given.points)
    compare(model, pixels, model.config.eps)


@torch.no_grad()
def sample(model: Certified, pixels: Tensor, norm: str, eps: float, points: int) -> None:
    """Score differences at random points and corners, and after steps along the gradient, against their bounds."""
    best = model.scores(pixels).argmax(1)
    bounds = model.margins(pixels.double(), best, norm, eps)
    certified = (bounds.masked_fill(F.one_hot(best, bounds.shape[1]).bool(), 1) > 0).all(1)
    below, flipped, closest = 0, 0, float("inf")
    generator = torch.Generator().manual_seed(0)
    each = -(-points // len(pixels))
    for image, first, bound, sure in zip(pixels, best, bounds, certified, strict=True):
        for start in range(0, each, PART):
            count = min(PART, each - start)
            moved = inside(image, norm, eps, count, generator)
            if start == 0:
                moved = torch.cat([moved, climbed(model, image, int(first), norm, eps)])
            scores = model.scores(moved).double()
            gaps = scores[:, first, None] - scores
            below += int((gaps < bound).any(1).sum())
            flipped += int((scores.argmax(1) != first).sum()) * int(sure)
            closest = min(closest, float((gaps - bound).amin(0).masked_fill(bound == bound[first], 1e9).min()))
    print(
        f"{norm} {eps:g}: {each * len(pixels):,} points around {len(pixels)} images, {int(certified.sum())} certified: "
        f"{below} points below a bound, {flipped} certified images changed; closest {closest:.3g} above its bound",
        flush=True,
    )


def inside(image: Tensor, norm: str, eps: float, count: int, generator: torch.Generator) -> Tensor:
    """Points in [0, 1] within a threat: a third at corners, a third inside, a third of each."""
    noise = torch.randn((count, *image.shape), generator=generator)
    if norm == "l2":
        change = eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    else:
        corners, uniform = noise.sign() * eps, (torch.rand(noise.shape, generator=generator) * 2 - 1) * eps
        share = (torch.arange(count) % 3 / 2).view(-1, 1, 1, 1)
        change = torch.where(torch.rand(noise.shape, generator=generator) < share, corners, uniform)
    return (image + change * (1 - 1e-6)).clamp(0, 1)


def climbed(model: Certified, image: Tensor, first: int, norm: str, eps: float) -> Tensor:
    """Points that signed or normalised gradients lead to, one for each other component and step."""
    found = []
    others = torch.tensor([other for other in range(model.config.classes) if other != first])
    moved = image.expand(len(others), *image.shape).clone()
    for _ in range(20):
        with torch.enable_grad():
            leaf = moved.requires_grad_()
            scores = model.scores(leaf)
            gap = (scores.gather(1, others[:, None])[:, 0] - scores[:, first]).sum()
            (slope,) = torch.autograd.grad(gap, leaf)
        if norm == "linf":
            change = moved.detach() + eps / 5 * slope.sign() - image
            moved = (image + change.clamp(-eps, eps) * (1 - 1e-6)).clamp(0, 1)
        else:
            steps = slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            change = moved.detach() + eps / 5 * steps - image
            length = change.flatten(1).norm(dim=1).clamp(min=eps).view(-1, 1, 1, 1)
            moved = (image + change * (eps / length) * (1 - 1e-6)).clamp(0, 1)
        found.append(moved)
    return torch.cat(found)


def compare(model: Certified, pixels: Tensor, eps: float) -> None:
    """Bounds of the differences of scores by another library, from the same weights."""
    try:
        from bound_propagation import BoundModelFactory, HyperRectangle
    except ImportError:
        print("bound-propagation is not installed, so nothing was compared with it")
        return
    pixels = pixels.double()
    low, high = ((pixels - eps).clamp(min=0).flatten(1), (pixels + eps).clamp(max=1).flatten(1))
    with torch.no_grad():
        best = model.scores(pixels.float()).argmax(1)
        ours = model.margins(pixels, best, "linf", eps)
    others = ~F.one_hot(best, model.config.classes).bool()
    theirs = torch.full_like(ours, 1)
    for first in best.unique().tolist():
        at = best == first
        with torch.no_grad():
            theirs[at] = BoundModelFactory().build(plain(model, first)).ibp(HyperRectangle(low[at], high[at])).lower
    gap = (theirs - ours)[others]
    sure = [int((each.masked_fill(~others, 1) > 0).all(1).sum()) for each in (ours, theirs)]
    print(
        f"bound-propagation: {gap.numel()} interval bounds of {len(pixels)} images, theirs minus ours {gap.min():.3g} "
        f"to {gap.max():.3g}; certified by ours {sure[0]}, by theirs {sure[1]}"
    )


def plain(model: Certified, first: int) -> nn.Module:
    """Flat images to the score of ``first`` minus each score, in torch's own linear layers and ReLUs."""
    shape, layers = model.config.image_shape, list[nn.Module]()
    for layer in model.maps:
        weight, bias, shape = dense(layer, shape)
        layers += [linear(weight, bias), nn.ReLU()]
    layers += [linear(model.hidden.run_weight, model.hidden.run_bias), nn.ReLU()]
    weight, bias = model.last.weight, model.last.bias
    layers.append(linear(weight[first] - weight, bias[first] - bias))
    return nn.Sequential(*layers).requires_grad_(False)


def dense(layer: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """A convolution of images of this shape as a matrix and a bias, and the shape of what it gives."""
    units = torch.eye(math.prod(shape)).view(-1, *shape)
    with torch.no_grad():
        columns = layer.applied(units, layer.run_weight, None)
    places = math.prod(columns.shape[2:])
    return columns.flatten(1).T, layer.run_bias.repeat_interleave(places), tuple(columns.shape[1:])


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made


if __name__ == "__main__":
    main()
