"""DeepFool (Moosavi-Dezfooli et al. 2016)."""

from __future__ import annotations

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
from purifier.torch_tools.norms import norm_of, scale_like
from purifier.vocabulary import Norm

from ._minimal import DUAL, Gap, Nearest

EXTRA_LENGTH = 1e-5
"""Added to each step's length, as in the authors' code; otherwise steps clamped to the box might never cross."""


@dataclass(frozen=True)
class DeepFool(Attack):
    """Steps to the nearest linearised boundary between the label and the likeliest other classes.

    Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", algorithm 2,
    for linf with the dual norm. An image is done when it is first misclassified, so its distance is an upper bound on
    the smallest one. If it never is, its result is the iterate of highest margin.

    Parameters
    ----------
    steps
        Maximum number of steps per image, at least 1; each costs one gradient per wrong class tried.
    overshoot
        How far beyond the linearised boundary to move, as a fraction of the way there.
    candidates
        How many of the likeliest classes to consider, including the image's own; at least 2.
    """

    needs: ClassVar[Literal["gradient"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"attack 'deepfool': steps must be at least 1, got {self.steps}")
        if self.candidates < 2:
            raise ConfigError(f"attack 'deepfool': candidates must be at least 2, got {self.candidates}")
        if not 0 <= self.overshoot < float("inf"):
            raise ConfigError(f"attack 'deepfool': overshoot must be a finite number >= 0, got {self.overshoot}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        best = Nearest(target, pixels, labels, threat, minimal=False)
        logits = target.logits(pixels)
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        goals = others.topk(min(self.candidates, logits.shape[1]) - 1, dim=1).indices
        at = best.todo()
        here, moved = pixels.clone(), torch.zeros_like(pixels)
        for step in range(self.steps):
            chosen = target.select(at)
            if step:
                logits = chosen.logits(here[at])
            fooled, _ = best.note(at, here[at], logits)
            # A random target may answer differently next time, so there an image only pauses.
            if not best.random:
                at, chosen = at[~fooled], chosen.select(~fooled)
            if not len(at):
                break
            forward = self._forward(chosen, here[at], labels[at], goals[at], threat.norm)
            if best.random:
                forward = torch.where(scale_like(fooled, forward), 0, forward)
            moved[at] += forward
            here[at] = (pixels[at] + (1 + self.overshoot) * moved[at]).clamp(0, 1)
        best.settle(target, best.todo(), here[best.todo()])
        return best.result(target)

    def _forward(self, target: Target, here: Tensor, labels: Tensor, goals: Tensor, norm: Norm) -> Tensor:
        """The step (M, C, H, W) onto the nearest linearised boundary to one of ``goals`` (M, candidates - 1)."""
        nearest, direction = here.new_full((len(here),), torch.inf), torch.zeros_like(here)
        for goal in goals.unbind(1):
            gap = Gap(goal, labels)
            gradient, logits = target.gradient(here, gap)
            slope = norm_of(gradient, DUAL[norm])
            distance = torch.where(slope > 0, gap(logits).abs() / slope, torch.inf)
            nearer = distance < nearest
            nearest = torch.where(nearer, distance, nearest)
            direction = torch.where(scale_like(nearer, here), gradient, direction)
        return steepest(direction, norm) * scale_like((nearest + EXTRA_LENGTH).where(nearest.isfinite(), 0), here)
