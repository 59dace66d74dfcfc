"""Targeted Fast Adaptive Boundary attack, FAB-T (Croce & Hein 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.steps import random_start
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from purifier.torch_tools.norms import norm_of, scale_like

from ._minimal import Gap, Nearest
from ._minimal_planes import onto_plane

MIN_LENGTH = 1e-8
"""Lower limit for step lengths when two are compared."""


@dataclass(frozen=True)
class FabT(Attack):
    """Moves along the boundary to each of several wrong classes, looking for its nearest point.

    Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", algorithm 1, in
    the targeted form of AutoAttack (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble
    of diverse parameter-free attacks"). Each step approximates the boundary to a class by a hyperplane, projects the
    iterate and the image onto it inside the box, and moves to a point between the two, a little beyond the boundary; a
    misclassified iterate is first pulled back towards the image. The paper linearises at the point it is pulled back
    to, which costs another forward pass; here this happens at the misclassified iterate, nearer to the boundary.

    First every class gets a tenth of the steps; those whose boundary then seems nearest get all steps. With
    ``finalists`` as large as ``targets``, all of them get all steps at once, as in the paper, which takes twice the
    time.

    An image is done once it is misclassified within eps. Otherwise its result is the nearest misclassified point,
    however far, or else the point of highest margin.

    Parameters
    ----------
    steps
        Steps per class, at least 1; each costs one gradient.
    targets
        How many wrong classes to try, the likeliest first; limited to all of them.
    finalists
        How many of these classes get all steps, at least 1.
    restarts
        Starts per class: the image itself, then uniform points in a ball of half the budget.
    alpha_max
        Maximum weight of the image relative to the iterate, in [0, 1].
    eta
        How far a step goes; 1 ends on the hyperplane.
    beta
        Where to pull a misclassified iterate back to: the fraction of its distance from the image, in (0, 1].
    minimal
        Keep looking for the smallest distance after finding one within eps.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    steps: int = 100
    targets: int = 9
    finalists: int = 3
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    minimal: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "targets", "finalists", "restarts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"attack 'fab-t': {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.alpha_max <= 1:
            raise ConfigError(f"attack 'fab-t': alpha_max must be in [0, 1], got {self.alpha_max}")
        if not 1 <= self.eta < float("inf"):
            raise ConfigError(f"attack 'fab-t': eta must be a finite number of at least 1, got {self.eta}")
        if not 0 < self.beta <= 1:
            raise ConfigError(f"attack 'fab-t': beta must be in (0, 1], got {self.beta}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        best = Nearest(target, pixels, labels, threat, minimal=self.minimal)
        logits = target.logits(pixels)
        best.note(best.todo(), pixels, logits)
        wrong = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        goals = wrong.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices
        if self.finalists < goals.shape[1]:
            short = math.ceil(self.steps / 10)
            away = torch.stack(
                [self._from_the_image(best, target, threat, pixels, labels, goal, short) for goal in goals.unbind(1)], 1
            )
            goals = goals.gather(1, away.topk(self.finalists, dim=1, largest=False).indices)
        for goal in goals.unbind(1):
            self._from_the_image(best, target, threat, pixels, labels, goal, self.steps)
            for _ in range(self.restarts - 1):
                at = best.todo()
                half = replace(threat, eps=threat.eps / 2)
                here = random_start(pixels[at], half, generator.select(at))
                self._approach(best, target, threat, at, here, pixels[at], Gap(goal[at], labels[at]), self.steps)
        return best.result(target)

    def _from_the_image(
        self, best: Nearest, target: Target, threat: Threat, pixels: Tensor, labels: Tensor, goal: Tensor, steps: int
    ) -> Tensor:
        """Start at the images themselves; the estimated distance (N,) to the boundary to the classes ``goal`` (N,)."""
        at = best.todo()
        return self._approach(best, target, threat, at, pixels[at], pixels[at], Gap(goal[at], labels[at]), steps)

    def _approach(
        self,
        best: Nearest,
        target: Target,
        threat: Threat,
        at: Tensor,
        here: Tensor,
        clean: Tensor,
        gap: Gap,
        steps: int,
    ) -> Tensor:
        """One start at ``here`` (M, C, H, W) for the images ``clean`` at positions ``at`` (M,).

        Returns the final estimate (N,) of the boundary's distance from each image, infinite for those not in ``at``.
        """
        chosen = target.select(at)
        away = best.pixels.new_full((len(best.pixels),), torch.inf)
        for _ in range(steps):
            if not len(at):
                return away
            gradient, logits = chosen.gradient(here, gap)
            # A NaN would stay in the iterate for good.
            normal = gradient.flatten(1).nan_to_num(0, 0, 0)
            fooled, stays = best.note(at, here, logits)
            pulled = torch.where(scale_like(fooled, here), clean + self.beta * (here - clean), here)
            here, away[at] = self._towards(here, normal, gap(logits).nan_to_num(0), pulled, clean, threat)
            if not stays.all():
                at, here, clean = at[stays], here[stays], clean[stays]
                chosen, gap = chosen.select(stays), gap.select(stays)
        best.settle(target, at, here)
        return away

    def _towards(
        self, tangent: Tensor, normal: Tensor, value: Tensor, here: Tensor, clean: Tensor, threat: Threat
    ) -> tuple[Tensor, Tensor]:
        """The next iterate from ``here``, for the plane whose value at ``tangent`` is ``value`` (M,), and the distance
        (M,) of the plane from ``clean`` inside the box.
        """
        both = torch.cat([here, clean]).flatten(1)
        normals = normal.repeat(2, 1)
        missing = (normals * (tangent.flatten(1).repeat(2, 1) - both)).sum(1) - value.repeat(2)
        step = onto_plane(both, normals, missing, threat.norm)
        near, far = norm_of(step, threat.norm).clamp_min(MIN_LENGTH).chunk(2)
        alpha = (near / (near + far)).clamp_max(self.alpha_max)
        ends = (both + self.eta * step).view(2, *here.shape)
        return torch.lerp(ends[0], ends[1], scale_like(alpha, here)).clamp(0, 1), far
