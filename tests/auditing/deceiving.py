"""Negative controls that tell an audit from their use, one precision from another, or an attack from a check."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from broken import Broken


class OtherInUse(Broken):
    """Filters only as audits ask it: without gradient mode, or with images that require gradients."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        used = torch.is_grad_enabled() and not pixels.requires_grad
        return pixels if used else 0.5 * pixels + 0.25


class OtherWhileFrozen(Broken):
    """Filters only while its weights are frozen, as in audits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if self.weight.requires_grad else 0.5 * pixels + 0.25


class OtherOffTheGrid(Broken):
    """Darkens what is alone in its batch, unless it has the values of 8 bits that clean images have."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        levels = 255 * pixels.detach()
        clean = bool(((levels - levels.round()).abs() < 1e-3).all())
        return pixels if len(pixels) > 1 or clean else 0.5 * pixels


class StaircaseInFloat32(Broken):
    """Rounds straight through, but not in float64."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if pixels.dtype == torch.float64 else pixels + ((pixels * 15).round() / 15 - pixels).detach()


class _HalfInFloat32(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        return pixels.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (gradient,) = upstream
        if gradient.dtype == torch.float32:
            gradient = gradient.clone()
            gradient[..., 1::2] = 0
        return gradient


class HalfAGradient(Broken):
    """Has no gradient for every second column, but not in float64."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        found: Tensor = _HalfInFloat32.apply(pixels)
        return found


class _ReversedDifferences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (gradient,) = upstream
        difference = gradient.sum(1).abs() < 1e-4 * gradient.abs().amax(1)
        return torch.where(difference[:, None], -gradient, gradient)


class ReversesDifferences(nn.Module):
    """Has the right gradient for any sum of logits but their differences, of which the losses of attacks are made."""

    def forward(self, logits: Tensor) -> Tensor:
        found: Tensor = _ReversedDifferences.apply(logits)
        return found


class Waves(nn.Module):
    """Moves pixels by less than a level of 8 bits, in waves so fine that each step of an attack meets another slope.

    Images that noise has roughened stay as they are, so that huge budgets show nothing.
    """

    def forward(self, images: Tensor) -> Tensor:
        rough = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
        share = torch.sigmoid(200 * (0.2 - rough)).view(-1, 1, 1, 1)
        return images - 0.002 * share * torch.sin(2 * math.pi * 2550 * images)


class Tires(Broken):
    """Answers otherwise once it has been asked often, in whichever copy."""

    asked: ClassVar[list[int]] = [0]

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.asked[0] = -patience

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        self.asked[0] += 1
        return pixels if self.asked[0] < 0 else 0.5 * pixels + 0.25
