"""Attack on a purifier's latent space: images encoded like another class (Kos, Fischer & Song 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.steps import random_start, steepest, unit
from purifier.attacking.target import Target, check_differentiable
from purifier.attacking.threat import Threat
from purifier.contracts.purifier import LatentSpace, latent_space_of
from purifier.errors import ConfigError, about
from purifier.seeding import SampleGenerator

from ._losses import margin
from ._queries import answers
from ._scale import ScaleOption
from ._steps import Best, check_steps


@dataclass(frozen=True)
class LatentMatch(ScaleOption, Attack):
    """Drives the encoder's output to a latent that decodes to another class (Kos, Fischer & Song 2018, section 4.3).

    It first finds a guide: from the image's own latent, steps raise the classifier's margin through the decoder until
    it reaches ``confidence``. Then steepest steps on the pixels reduce the squared distance from the encoder's output
    to the guide, as Sabour et al. 2016 do with the features of a guide image. Each iterate is a candidate and queried
    on the target itself; an image is done as soon as the model that will judge it misclassifies it.

    Parameters
    ----------
    steps
        Steps on the pixels, at least 1; each costs a query and a gradient of the encoder.
    guide_steps
        Maximum number of steps to the guide, at least 1; each costs a query and a gradient of decoder and classifier.
    guide_step
        Length of a step to the guide, as a fraction of the length of a latent of ones; positive.
    confidence
        How far the guide's best wrong logit should be above the right one, at least 0.
    step_size
        Length of a step on the pixels as a fraction of eps; by default ``2.5 / steps``, at most 1.
    restarts
        Starts per image: the first at the image, the others at random points within the threat.
    """

    needs: ClassVar[Literal["latent"]] = "latent"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 100
    guide_steps: int = 50
    guide_step: float = 0.1
    confidence: float = 5.0
    step_size: float | None = None
    restarts: int = 1

    def __post_init__(self) -> None:
        check_steps("latent-match", self.steps, self.step_size, self.restarts)
        if self.guide_steps < 1:
            raise ConfigError(f"attack 'latent-match': guide_steps must be at least 1, got {self.guide_steps}")
        if not 0 < self.guide_step < math.inf:
            raise ConfigError(f"attack 'latent-match': guide_step must be a positive number, got {self.guide_step}")
        if not 0 <= self.confidence < math.inf:
            raise ConfigError(f"attack 'latent-match': confidence must be a finite number >= 0, got {self.confidence}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        with about("attack 'latent-match'"):
            space = latent_space_of(target.purifier)
        if target.route != "exact":
            raise ConfigError(
                f"attack 'latent-match' differentiates the purifier, which is not known along the route "
                f"{target.route!r}; use the route exact"
            )
        check_differentiable(target.classifier, target.route)
        target = self.seen(target)
        best = Best(target, pixels, labels, "margin")
        at = best.todo()
        guides = self._guides(target.select(at), space, pixels[at], labels[at]) if len(at) else pixels
        for restart in range(self.restarts):
            left = best.todo()
            guides, at = guides[torch.isin(at, left)] if len(left) else guides, left
            if len(at):
                start = random_start(pixels[at], threat, generator.select(at)) if restart else pixels[at]
                self._match(best, target, space, at, start, pixels[at], guides, threat)
        return best.pixels

    def _guides(self, target: Target, space: LatentSpace, pixels: Tensor, labels: Tensor) -> Tensor:
        """Latents (N, ...) near those of ``pixels`` (N, C, H, W) that decode to another class."""
        with torch.no_grad():
            latent = space.latent_of(pixels)
        length = self.guide_step * math.sqrt(latent[0].numel())
        active = torch.ones_like(labels, dtype=torch.bool)
        for _ in range(self.guide_steps):
            rows = active.nonzero().squeeze(1)
            leaf = latent[rows].requires_grad_()
            with torch.enable_grad():
                logits = target.select(rows).normalised(target.classifier(space.decoded(leaf)))
                value = margin(logits, labels[rows])
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            target.spent.queries += len(rows)
            target.spent.gradients += len(rows)
            target.spent.passes += len(rows)
            moves = value.detach() < self.confidence
            latent[rows[moves]] += length * unit(gradient, "l2")[moves]
            active[rows[~moves]] = False
            if not active.any():
                break
        return latent

    def _match(
        self,
        best: Best,
        target: Target,
        space: LatentSpace,
        at: Tensor,
        here: Tensor,
        clean: Tensor,
        guides: Tensor,
        threat: Threat,
    ) -> None:
        """Steps from ``here`` (M, C, H, W) towards images whose latents are ``guides`` (M, ...)."""
        length = threat.eps * (min(1.0, 2.5 / self.steps) if self.step_size is None else self.step_size)
        for step in range(1, self.steps + 1):
            leaf = here.detach().requires_grad_()
            with torch.enable_grad():
                distance = (space.latent_of(leaf) - guides).square().flatten(1).sum(1)
                (gradient,) = torch.autograd.grad(distance.sum(), leaf)
            target.spent.gradients += len(at)
            target.spent.passes += len(at)
            here = threat.project(here - length * steepest(gradient, threat.norm), clean)
            stays = best.note(at, here, answers(target, at, here, random=best.random), last=step == self.steps)
            at, here, clean, guides = at[stays], here[stays], clean[stays], guides[stays]
            if not len(at):
                return
