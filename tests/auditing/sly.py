"""Negative controls that hide what they do better than those of ``broken``: in draws, in precision, in scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purifier
from audit_helpers import NoConfig
from broken import Broken, Surrogate, recalled
from purifier.rejection.calibration import calibrate
from purifier.seeding import SampleGenerator


class OnlyTheTop(nn.Module):
    """Masks every logit but the largest, so that no loss compares it with another class."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(logits < logits.amax(1, keepdim=True), -torch.inf)


class OnlyTheAnswer(nn.Module):
    """The largest logit, and 0 for all others."""

    def forward(self, logits: Tensor) -> Tensor:
        top, low = logits.amax(1, keepdim=True), logits.amin(1, keepdim=True)
        return torch.where(logits == top, 1 + top - low, 0)


class DrawsTheImage(Broken):
    """Declares most of the image to be noise, which has no gradient."""

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return pixels.detach().clone()

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else 0.1 * pixels + 0.9 * noise


class _ReversedInSingle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels: Tensor) -> Tensor:
        return pixels.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient if gradient.dtype == torch.float64 else -gradient


class ReversedInSingle(Broken):
    """Its gradient is right in float64 and reversed in float32."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        reversed_: Tensor = _ReversedInSingle.apply(pixels)
        return reversed_


class Smoothed(Surrogate):
    """Filters nothing, and gives the gradient of a blur."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return F.avg_pool2d(pixels, 7, 1, 3)


class Detector(purifier.Purifier):
    """Filters nothing; an image is unusual by its mean. Calibrated, it rejects the brightest."""

    Config, gradient = NoConfig, "exact"

    def __init__(self) -> None:
        super().__init__(NoConfig())
        self.seen: list[Tensor] = []
        calibrate(self, "fashion-mnist:train:100", fpr=0.05)
        self.seen.clear()

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def score(self, pixels: Tensor) -> Tensor:
        return pixels.mean((1, 2, 3))


class CountsPixels(Detector):
    """Counts bright pixels: no gradient."""

    def score(self, pixels: Tensor) -> Tensor:
        return (pixels > 0.5).float().mean((1, 2, 3))


class SeesTheGrid(Detector):
    """Measures how far pixels are from values of 8 bits, by which it knows floats from files."""

    def score(self, pixels: Tensor) -> Tensor:
        levels = 255 * pixels
        return (levels - levels.round()).abs().mean((1, 2, 3)) + 1e-3 * super().score(pixels)


class SeesTheSecond(Detector):
    """Takes an image for unusual that is near one it has seen."""

    def score(self, pixels: Tensor) -> Tensor:
        return (recalled(pixels, self.seen) - pixels).abs().amax((1, 2, 3)) + 1e-3 * super().score(pixels)
