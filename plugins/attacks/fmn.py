"""Fast Minimum-Norm attack (Pintor et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.steps import steepest
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from purifier.torch_tools.norms import norm_of

from ._losses import check_loss, loss_from, loss_of
from ._minimal import DUAL, Nearest, onto_balls
from ._scale import ScaleOption

LAST_GAMMA, LAST_ALPHA = 0.02, 0.01
"""Fractions of ``gamma`` and ``alpha`` that are left at the last step."""
ZERO_AT_THE_BOUNDARY = ("margin", "dlr")
"""Losses whose value divided by their slope is the distance to the boundary, to first order."""


@dataclass(frozen=True)
class Fmn(ScaleOption, Attack):
    """Steps along the gradient in a ball whose radius adapts to each image, and shrinks while it is misclassified.

    Pintor et al. 2021, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", algorithm 1, from the
    image itself. Until an image is first misclassified, the radius is its distance plus the distance to the boundary
    estimated by linearising the loss; for ``ce`` and ``targeted``, whose values do not tell, the margin is linearised
    at the first step. In the paper the radius can get stuck where the box clamps the steps; here it also grows. The
    step length and the change of the radius shrink along a cosine.

    An image is done once it is misclassified within eps. Otherwise its result is the nearest misclassified point,
    however far, or else the point of highest margin.

    Parameters
    ----------
    steps
        Gradient steps, at least 1.
    alpha
        L2 length of the first step, in pixel units, for every norm.
    gamma
        How much the radius shrinks or grows at the first step, as a fraction in (0, 1).
    loss
        Loss to maximise: ``ce``, ``dlr``, ``margin`` or ``targeted``.
    minimal
        Keep looking for the smallest distance after finding one within eps.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    steps: int = 100
    alpha: float = 1.0
    gamma: float = 0.05
    loss: str = "margin"
    minimal: bool = False

    def __post_init__(self) -> None:
        check_loss("fmn", self.loss)
        if self.steps < 1:
            raise ConfigError(f"attack 'fmn': steps must be at least 1, got {self.steps}")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"attack 'fmn': alpha must be a finite positive number, got {self.alpha}")
        if not 0 < self.gamma < 1:
            raise ConfigError(f"attack 'fmn': gamma must be in (0, 1), got {self.gamma}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = Nearest(target, pixels, labels, threat, minimal=self.minimal)
        loss = loss_from(self.loss, target, pixels, labels)
        at, here, clean, chosen = best.todo(), pixels, pixels, target
        linear = self.loss in ZERO_AT_THE_BOUNDARY
        nearest = pixels.new_full((len(pixels),), torch.inf)
        radius = torch.zeros_like(nearest)
        for step in range(self.steps):
            gradient, logits = chosen.gradient(here, loss)
            fooled, stays = best.note(at, here, logits)
            size = threat.distance(here, clean)
            # A random target can misclassify the clean image by chance, and a ball of radius 0 would never grow.
            fooled = fooled & (size > 0)
            nearest = torch.where(fooled, torch.minimum(nearest, size), nearest)
            gamma = _annealed(self.gamma, LAST_GAMMA, step / self.steps)
            wider = radius * (1 + gamma)
            if linear:
                first = size + _distance_to_zero(gradient, loss(logits), threat)
                wider = torch.where(nearest.isfinite(), wider, torch.maximum(wider, first))
            elif not step:
                gap = loss_of("margin", labels[at])
                wider = _distance_to_zero(chosen.gradient(here, gap)[0], gap(logits), threat)
            radius = torch.where(fooled, torch.minimum(radius * (1 - gamma), nearest), wider)
            length = _annealed(self.alpha, LAST_ALPHA, step / self.steps)
            moved = here + length * steepest(gradient, "l2") - clean
            here = (clean + onto_balls(moved, radius, threat.norm)).clamp(0, 1)
            if not stays.all():
                at, here, clean, radius, nearest = (one[stays] for one in (at, here, clean, radius, nearest))
                chosen, loss = chosen.select(stays), loss.select(stays)
                if not len(at):
                    break
        best.settle(target, at, here)
        return best.result(target)


def _distance_to_zero(gradient: Tensor, value: Tensor, threat: Threat) -> Tensor:
    """The first-order distance (M,) to the zero of a function, from its values (M,) and gradients (M, C, H, W).

    0 where the gradient is 0 or not finite, because a radius of NaN would stay for good.
    """
    slope = norm_of(gradient, DUAL[threat.norm])
    return (value.abs() / slope).where((slope > 0) & slope.isfinite(), 0).nan_to_num(0)


def _annealed(first: float, last: float, progress: float) -> float:
    """Decays from ``first`` to the fraction ``last`` of it along a cosine, with ``progress`` in [0, 1]."""
    return first * (last + (1 - last) * (1 + math.cos(math.pi * progress)) / 2)
