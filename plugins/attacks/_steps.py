"""What gradient attacks share: the steepest step, the random start, and the strongest image so far."""

from __future__ import annotations

import torch
from torch import Tensor

from purifier.seeding import SampleGenerator
from purifier.target import Target
from purifier.threat import Norm, Threat, norm_of, scale_like

from ._losses import LOSSES

FOOLED = 1e4
"""More than any loss: what sets misclassified images above the others."""


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 in ``norm`` that a linear loss grows most along; 0 where the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    return gradient / scale_like(norm_of(gradient, "l2").clamp_min(1e-12), gradient)


def random_start(pixels: Tensor, threat: Threat, generator: SampleGenerator) -> Tensor:
    """Uniform in the threat's ball (Madry et al. 2018), then cut to the box."""
    shape = pixels.shape[1:]
    if threat.norm == "linf":
        offset = 2 * generator.uniform(shape, pixels) - 1
    else:
        # A radius u^(1/d) makes a uniform direction uniform in the ball of d dimensions.
        radius = generator.uniform((), pixels) ** (1 / shape.numel())
        offset = steepest(generator.normal(shape, pixels), "l2") * scale_like(radius, pixels)
    return threat.project(pixels + threat.eps * offset, pixels)


class Best:
    """The strongest image found so far for each of N: misclassified before all, then of the highest loss.

    Where the target is the very model that will judge, the first misclassification ends an image's search. On the
    route ``oblivious`` it does not: the images are meant for a guard the attack cannot ask, and one just over the
    classifier's edge would transfer badly. Under a random target one good draw is luck: there only the last image
    of each start is a candidate, ranked by its loss on fresh draws.
    """

    def __init__(self, target: Target, pixels: Tensor, labels: Tensor, loss: str) -> None:
        self.pixels = pixels.clone()
        self._labels, self._loss = labels, LOSSES[loss]
        self._value = pixels.new_full((len(pixels),), -torch.inf, dtype=torch.float32)
        self.random = target.random(pixels)
        self._stops = target.route != "oblivious" and not self.random

    def note(self, at: Tensor, pixels: Tensor, logits: Tensor, *, last: bool = False) -> Tensor:
        """Take over what is better; say which images still need work, (M,) booleans.

        ``at`` (M,) are positions among the N, ``pixels`` (M, C, H, W) candidates, ``logits`` (M, K) theirs; ``last``
        says that a start ends here.
        """
        if last or not self.random:
            labels = self._labels[at]
            value, fooled = self._loss(logits, labels), logits.argmax(1) != labels
            if not self.random:
                value = torch.where(fooled, torch.inf if self._stops else value + FOOLED, value)
            better = value > self._value[at]
            self.pixels[at[better]] = pixels[better].detach()
            self._value[at[better]] = value[better]
        return self._value[at] < torch.inf

    def todo(self) -> Tensor:
        """Positions of the images that still need work."""
        return (self._value < torch.inf).nonzero().squeeze(1)
