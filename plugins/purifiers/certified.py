"""Purifier ``certified``: replaces an image by that of its component, which provably does not change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifier.attacking.threat import Threat
from purifier.contracts.bounded import TrainingBounds
from purifier.contracts.purifier import Purifier
from purifier.errors import ConfigError

from ._interval import TINY, Layer, applied_all, box, differences, rounding, trained_all

KERNEL = 5
OVERFLOW = 1e30
"""Sums in float32 that may get larger than this are not bounded: far beyond it they are infinite."""
MAX_WEIGHTS = 10**9
"""More are probably a mistake, so they are an error before any memory is allocated."""


@dataclass(frozen=True)
class CertifiedConfig:
    """Shape, size and threat.

    Parameters
    ----------
    image_shape
        (C, H, W) of the images.
    classes
        Number of components, one for each class of the classifier.
    norm, eps
        The threat that the recipe ``certified`` trains for, in pixel units; ``score`` is measured at it.
    channels
        Width of the first convolution, doubled by each later one.
    depth
        Number of convolutions, each of which halves the image.
    hidden
        Width of the linear layer before the scores.
    """

    image_shape: tuple[int, int, int]
    classes: int = 10
    norm: Literal["linf", "l2"] = "linf"
    eps: float = 0.1
    channels: int = 32
    depth: int = 2
    hidden: int = 256

    def __post_init__(self) -> None:
        if min(self.image_shape) < 1 or min(self.channels, self.depth, self.hidden) < 1:
            raise ConfigError(f"certified: image_shape, channels, depth and hidden must be positive, got {self}")
        if self.classes < 2:
            raise ConfigError(f"certified: expected 2 or more classes, got {self.classes}")
        if not Threat(self.norm, self.eps).eps:
            raise ConfigError(f"certified: eps must be above 0 in pixel units, got {self.eps}")
        if self.weights > MAX_WEIGHTS:
            raise ConfigError(
                f"certified: these options give {self.weights:.3g} weights, expected at most {MAX_WEIGHTS:.0e}; lower "
                "channels, hidden or depth"
            )

    @property
    def widths(self) -> list[int]:
        """Channels of the image and of each map."""
        return [self.image_shape[0], *(self.channels << level for level in range(self.depth))]

    @property
    def features(self) -> int:
        """How many values the last map has."""
        height, width = (-(-side // (1 << self.depth)) for side in self.image_shape[1:])
        return self.widths[-1] * height * width

    @property
    def weights(self) -> int:
        """How many weights the encoder has, without biases."""
        maps = sum(inner * outer for inner, outer in pairwise(self.widths))
        return int(KERNEL**2 * maps + (self.features + self.classes) * self.hidden)


class Certified(Purifier):
    """An encoder scores components; purifying gives the image of the highest one.

    Where no image within a threat has another highest component, all of them become the same image, so that the
    classifier's answer to them is the same, whichever classifier it is. The encoder decides; the classifier names.
    Trained by the recipe ``certified``, which also chooses the images, one for each component, from the training data.

    The images are all that a decoder of components could give, so they are kept instead of one. The surrogate is their
    mixture by the softmax of the scores.
    """

    Config = CertifiedConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "surrogate"
    bounded_norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    config: CertifiedConfig
    images: Tensor

    def __init__(self, config: CertifiedConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.maps = nn.ModuleList(Layer(inner, outer, KERNEL) for inner, outer in pairwise(widths))
        self.hidden = Layer(config.features, config.hidden)
        self.last = nn.Linear(config.hidden, config.classes)
        self.register_buffer("images", torch.rand(config.classes, *config.image_shape))

    @property
    def layers(self) -> list[Layer]:
        """All layers with a ReLU, in order."""
        return [layer for layer in (*self.maps, self.hidden) if isinstance(layer, Layer)]

    def scores(self, pixels: Tensor) -> Tensor:
        """The components' scores (N, classes) for pixels (N, C, H, W), in their dtype also under autocast."""
        kind = pixels.device.type
        if torch.is_autocast_enabled(kind):  # bounds are not for less than float32
            with torch.autocast(kind, enabled=False):
                return self.scores(pixels)
        scores: Tensor = self.last(applied_all(self.layers, pixels))
        return scores

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.images.index_select(0, self.scores(pixels).argmax(1))

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The components' images, mixed by the softmax of the scores."""
        mixed: Tensor = torch.tensordot(self.scores(pixels).softmax(1), self.images, dims=1)
        return mixed.clamp(0, 1)

    def score(self, pixels: Tensor) -> Tensor:
        """Minus the certificate's margin at ``norm`` and ``eps``: below 0, the image is certified there."""
        best = self.scores(pixels).argmax(1)
        margins = self.margins(pixels, best, self.config.norm, self.config.eps)
        own = F.one_hot(best, self.config.classes).bool()
        return -margins.masked_fill(own, math.inf).amin(1)

    def outputs(self) -> Tensor:
        """The components' images (K, C, H, W)."""
        return self.images

    def reachable(self, pixels: Tensor, norm: str, eps: Tensor, factors: float = 0.0) -> Tensor:
        """Which outputs (N, K) some image within ``eps`` (N,) of each may be purified to."""
        best = self.scores(pixels).argmax(1)
        margins = self.margins(pixels.double(), best, norm, eps.double().view(-1, 1, 1, 1), factors)
        return ~(margins > 0) | F.one_hot(best, self.config.classes).bool()

    def margins(self, pixels: Tensor, best: Tensor, norm: str, eps: float | Tensor, factors: float = 0.0) -> Tensor:
        """Lower bounds (N, K) of by how much the score of component ``best`` (N,) is above each, within a threat.

        ``eps`` is a number, or a tensor that broadcasts with the pixels. The bounds hold for scores that are computed
        in float32, and are themselves computed in the pixels' dtype. ``factors`` as for ``rounding``.
        """
        around = box(pixels, eps)
        first, *others = self.layers
        values = first.bounds(around, factors) if norm == "linf" else first.ball_bounds(pixels, around, eps, factors)
        largest = first.largest(around)
        for layer in others:
            inner = values.rectified().flat() if layer.is_linear else values.rectified()
            largest = torch.maximum(largest, layer.largest(inner))
            values = layer.bounds(inner, factors)
        values = values.rectified()
        weight, bias = (part.to(pixels.dtype) for part in (self.last.weight, self.last.bias))
        slack = rounding(self.config.hidden, factors, pixels.dtype)
        # Both scores are rounded, each by its own weights.
        lost = F.linear(values.magnitude, weight.abs(), bias.abs()) * slack + TINY
        margins = differences(values, weight, bias, best) - lost - lost.gather(1, best[:, None])
        largest = torch.maximum(largest, self.config.hidden * weight.abs().max() * values.magnitude.amax(1))
        return margins.masked_fill((largest > OVERFLOW)[:, None], -math.inf)

    @property
    def trained_for(self) -> tuple[str, float]:
        """Norm and eps of the threat that it is trained for."""
        return self.config.norm, self.config.eps

    def training_bounds(
        self, pixels: Tensor, labels: Tensor, eps: float, points: Tensor | None = None
    ) -> TrainingBounds:
        """Scores of ``points``, and lower bounds of the margins of ``labels`` within ``eps`` of ``pixels``."""
        around = box(pixels, eps)
        ball = None if self.config.norm == "linf" else (pixels, eps)
        given = pixels if points is None else points
        last, values, found = trained_all(self.layers, given, around, ball)
        margins = differences(values, self.last.weight, self.last.bias, labels)
        intervals = [(part.centre, part.radius) for part in (around, *found)]
        return TrainingBounds(self.last(last), margins, intervals)

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        raise ConfigError("the purifier certified is trained with bounds: use the recipe certified")
