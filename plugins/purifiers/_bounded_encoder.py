"""An encoder whose layers have bounds, so that training can limit what any change within a threat does to it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from purifier.contracts.bounded import TrainingBounds

from ._interval import Layer, applied_all, box, differences, trained_all

KERNEL = 5
WIDENING = 3
"""How much wider its layers are than those of the other encoder, of which there are more."""
HIDDEN = 256
"""Values of the linear layer before the latent."""
LOG_VARIANCE = -4.0
"""Where log-variances begin: with less noise than signal, since narrow layers pass on little of it."""


class BoundedEncoder(nn.Module):
    """Images (N, C, H, W) -> the mean and log-variance of a latent vector, and while training the scores of classes.

    Convolutions of stride 2 and a linear layer, each with a ReLU. The scores are from the same values as the latent,
    so that bounds that keep them apart limit what an attacker can do to the latent.

    Parameters
    ----------
    colours
        C.
    map_size
        (h, w) of the last map: H and W divided by ``2**depth``.
    channels
        A third of the width of the first layer; each later one is twice as wide.
    depth
        Number of convolutions.
    latent
        Size of the latent vector.
    classes
        Number of classes that images are labelled with.
    """

    def __init__(
        self, colours: int, map_size: tuple[int, int], channels: int, depth: int, latent: int, classes: int
    ) -> None:
        super().__init__()
        widths = bounded_widths(colours, channels, depth)
        self.maps = nn.ModuleList(Layer(inner, outer, KERNEL) for inner, outer in pairwise(widths))
        self.hidden = Layer(widths[-1] * math.prod(map_size), HIDDEN)
        self.last = nn.Linear(HIDDEN, 2 * latent)
        self.scores = nn.Linear(HIDDEN, classes)
        with torch.no_grad():
            self.last.bias[latent:].fill_(LOG_VARIANCE)

    @property
    def layers(self) -> list[Layer]:
        """All layers with a ReLU, in order."""
        return [layer for layer in (*self.maps, self.hidden) if isinstance(layer, Layer)]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.last(applied_all(self.layers, pixels)).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 8)

    def training_bounds(self, pixels: Tensor, labels: Tensor, eps: float, points: Tensor) -> TrainingBounds:
        """Scores of ``points``, and bounds of those of all images within a linf distance ``eps`` of ``pixels``."""
        around = box(pixels, eps)
        last, values, found = trained_all(self.layers, points, around)
        margins = differences(values, self.scores.weight, self.scores.bias, labels)
        return TrainingBounds(self.scores(last), margins, [(part.centre, part.radius) for part in (around, *found)])


def bounded_widths(colours: int, channels: int, depth: int) -> list[int]:
    """Channels of the image and of each map."""
    return [colours, *(WIDENING * channels << level for level in range(depth))]
