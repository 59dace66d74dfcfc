"""Layers that are run on images and on intervals, with bounds that hold for the arithmetic that runs.

Bounds of the exact result are interval bound propagation (Gowal et al. 2018, section 3). A layer that runs in floating
point is off by its rounding: a sum of n products w x in any order, with or without fused multiply-add, is off by at
most n u / (1 - n u) times the sum of |w| |x|, where u = 2**-24 is float32's unit roundoff (Higham 2002, "Accuracy and
Stability of Numerical Algorithms", section 3.1). That is added to each radius, and so is the rounding of the bounds,
which are computed in floating point too. Winograd's convolutions round more; the strides here are 2, so none is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNIT = 2.0**-24
"""float32's unit roundoff."""
OWN_ROUNDING = 3
"""How often the rounding of the bounds is added: for centre, radius, and the steps between them."""
OTHER_STEPS = 8
"""Roundings of a layer beside those of its products: bias, interval ends, their half sum and half difference."""
MOMENTUM = 0.1
STABLE = 1e-5
"""As for torch's BatchNorm."""
PART = 2**24
"""How many values of the differences of weights are held at once."""
TINY = 1e-30
"""More than is lost where products are too small for a normal number, which some processors turn into 0."""


class Interval(NamedTuple):
    """Values from ``centre - radius`` to ``centre + radius``."""

    centre: Tensor
    radius: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Interval:
        return cls((low + high) / 2, (high - low) / 2)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.centre - self.radius, self.centre + self.radius

    @property
    def magnitude(self) -> Tensor:
        """No value is further from 0."""
        return self.centre.abs() + self.radius

    def rectified(self) -> Interval:
        low, high = self.ends
        return Interval.between(low.relu(), high.relu())

    def flat(self) -> Interval:
        return Interval(self.centre.flatten(1), self.radius.flatten(1))


class Layer(nn.Module):
    """A convolution of stride 2 or a linear layer, then batch normalisation.

    Weights are drawn so that a random layer neither widens nor narrows intervals (Shi et al. 2021, "Fast certified
    robust training with short warmup", section 3.1). While training, batch normalisation uses the statistics of the
    images themselves, for their intervals too (their section 3.2); afterwards it is part of the weights.
    """

    mean: Tensor
    variance: Tensor
    run_weight: Tensor
    run_bias: Tensor

    def __init__(self, inner: int, outer: int, kernel: int | None = None) -> None:
        super().__init__()
        self.transform: nn.Linear | nn.Conv2d
        if kernel is None:
            self.transform = nn.Linear(inner, outer, bias=False)
        else:
            self.transform = nn.Conv2d(inner, outer, kernel, stride=2, padding=(kernel - 1) // 2, bias=False)
        self.products = self.weight[0].numel()
        """How many products each sum has."""
        nn.init.normal_(self.weight, std=math.sqrt(2 * math.pi) / self.products)
        self.scale = nn.Parameter(torch.ones(outer))
        self.bias = nn.Parameter(torch.zeros(outer))
        self.register_buffer("mean", torch.zeros(outer))
        self.register_buffer("variance", torch.ones(outer))
        # What runs and what is bounded must be the same numbers, also in an exported file; so they are computed once.
        self.register_buffer("run_weight", torch.empty_like(self.weight), persistent=False)
        self.register_buffer("run_bias", torch.empty_like(self.bias), persistent=False)
        self.register_load_state_dict_post_hook(_refold)  # type: ignore[no-untyped-call]  # torch's
        self.fold()

    @property
    def weight(self) -> Tensor:
        return self.transform.weight

    @property
    def is_linear(self) -> bool:
        return isinstance(self.transform, nn.Linear)

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            raw = self.applied(_packed(values), self.weight, None)
            factor, shift = self._normalisation(raw)
            return raw * factor + shift
        return self.applied(values, self.run_weight, self.run_bias)

    def train(self, mode: bool = True) -> Layer:
        super().train(mode)
        self.fold()
        return self

    @torch.no_grad()
    def fold(self) -> None:
        """Put batch normalisation into the weight and bias that run."""
        factor = self.scale * (self.variance + STABLE).rsqrt()
        self.run_weight.copy_(self.weight * _along(factor, self.weight.ndim, 0))
        self.run_bias.copy_(self.bias - self.mean * factor)

    def applied(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.transform, nn.Linear):
            return F.linear(values, weight, bias)
        return F.conv2d(values, weight, bias, stride=2, padding=(weight.shape[-1] - 1) // 2)

    def largest(self, values: Interval) -> Tensor:
        """No sum inside the layer is further from 0 for values (n, ...) in an interval, (n,)."""
        weight, bias = self.run_weight.abs().max(), self.run_bias.abs().max()
        return self.products * weight * values.magnitude.flatten(1).amax(1) + bias

    def bounds(self, values: Interval, factors: float) -> Interval:
        """What the layer gives for values in an interval; ``factors`` as for ``rounding``."""
        weight, bias = (part.to(values.centre.dtype) for part in (self.run_weight, self.run_bias))
        slack = rounding(self.products, factors, values.centre.dtype)
        centre = self.applied(values.centre, weight, bias)
        radius = self.applied(values.radius + slack * values.magnitude, weight.abs(), slack * bias.abs())
        return Interval(centre, radius + TINY)

    def ball_bounds(self, pixels: Tensor, box: Interval, eps: float | Tensor, factors: float) -> Interval:
        """What the layer gives for pixels within an l2 distance of ``eps`` that are also in ``box``.

        The furthest that w x moves is ``eps`` times the norm of those weights that meet a pixel (Cauchy & Schwarz).
        """
        weight, bias = (part.to(pixels.dtype) for part in (self.run_weight, self.run_bias))
        slack = rounding(self.products, factors, pixels.dtype)
        norm = self.applied(torch.ones_like(pixels[:1]), weight.square(), None).sqrt() * (eps * (1 + slack))
        centre = self.applied(pixels, weight, bias)
        magnitude = torch.maximum(box.magnitude, pixels.abs())
        radius = norm + self.applied(slack * magnitude, weight.abs(), slack * bias.abs()) + TINY
        return _both(Interval(centre, radius), self.bounds(box, factors))

    def trained(
        self, points: Tensor, values: Interval, ball: tuple[Tensor, float] | None = None
    ) -> tuple[Tensor, Interval]:
        """Points and intervals after the layer, normalised by the statistics of the points; without rounding.

        ``ball``, for the first layer: the intervals' pixels and the l2 distance that they are limited to, too.
        """
        raw, centre = self.applied(torch.cat([_packed(points), values.centre]), self.weight, None).chunk(2)
        after = Interval(centre, self.applied(values.radius, self.weight.abs(), None))
        if ball is not None:
            pixels, eps = ball
            norm = eps * (self.applied(torch.ones_like(pixels[:1]), self.weight.square(), None) + TINY).sqrt()
            after = _both(after, Interval(raw, norm))
        factor, shift = self._normalisation(raw)
        return raw * factor + shift, Interval(after.centre * factor + shift, after.radius * factor.abs())

    def _normalisation(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and shift that normalise a batch by its own statistics, which the running ones follow."""
        others = [place for place in range(raw.ndim) if place != 1]
        raw = raw.to(self.mean.dtype)  # under torch.autocast it may be shorter
        mean, variance = raw.mean(others), raw.var(others, correction=0)
        with torch.no_grad():
            self.mean.lerp_(mean, MOMENTUM)
            self.variance.lerp_(variance, MOMENTUM)
        factor = self.scale * (variance + STABLE).rsqrt()
        return _along(factor, raw.ndim, 1), _along(self.bias - mean * factor, raw.ndim, 1)


def applied_all(layers: Iterable[Layer], values: Tensor) -> Tensor:
    """What layers give one after another, each with a ReLU."""
    for layer in layers:
        values = layer(values.flatten(1) if layer.is_linear else values).relu()
    return values


def trained_all(
    layers: Iterable[Layer], points: Tensor, values: Interval, ball: tuple[Tensor, float] | None = None
) -> tuple[Tensor, Interval, list[Interval]]:
    """The same for points and intervals as ``Layer.trained`` has them, and the intervals before each ReLU."""
    found = []
    for layer in layers:
        if layer.is_linear:
            points, values = points.flatten(1), values.flat()
        points, values = layer.trained(points, values, ball)
        found.append(values)
        points, values, ball = points.relu(), values.rectified(), None
    return points, values, found


def differences(values: Interval, weight: Tensor, bias: Tensor, best: Tensor) -> Tensor:
    """Lower bounds (N, K) of score ``best`` minus each score, from the bounds of the last layer's input.

    Bounds of the differences themselves are tighter than differences of bounds ("elision of the last layer", Gowal et
    al. 2018, section 3).
    """
    found = []
    count = max(1, PART // weight.numel())
    parts = (torch.split(part, count) for part in (values.centre, values.radius, best))
    for centre, radius, first in zip(*parts, strict=True):
        gaps = weight[first][:, None] - weight
        low = (gaps @ centre[..., None] - gaps.abs() @ radius[..., None]).squeeze(2)
        found.append(low + (bias[first][:, None] - bias))
    return torch.cat(found)


def box(pixels: Tensor, eps: float | Tensor) -> Interval:
    """The pixels within a linf distance of ``eps`` that are also in [0, 1]."""
    return Interval.between((pixels - eps).clamp(min=0), (pixels + eps).clamp(max=1))


def _packed(values: Tensor) -> Tensor:
    """Maps in channels-last, in which the convolutions are faster."""
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def _refold(layer: Layer, _: object) -> None:
    layer.fold()


def _both(one: Interval, other: Interval) -> Interval:
    """The values in both intervals, of which there are some."""
    low, high = zip(one.ends, other.ends, strict=True)
    return Interval.between(torch.maximum(*low), torch.minimum(*high))


def rounding(products: int, factors: float, dtype: torch.dtype) -> float:
    """The share of the sum of |w| |x| by which a layer in float32, and its bounds in ``dtype``, may be off.

    ``factors`` is the relative rounding of w and x before they are multiplied, as with TF32; 0 for none.
    """
    own = torch.finfo(dtype).eps / 2
    count = products + OTHER_STEPS
    return (count * (UNIT + OWN_ROUNDING * own) + 2 * factors + factors**2) / (1 - count * max(UNIT, own))


def _along(values: Tensor, dimensions: int, place: Literal[0, 1]) -> Tensor:
    """A vector shaped so that it multiplies along one of so many dimensions."""
    shape = [1] * dimensions
    shape[place] = -1
    return values.view(shape)
