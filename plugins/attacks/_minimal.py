"""Shared by minimal-norm attacks: the nearest misclassified image so far, balls with a radius for each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purifier.attacking.steps import steepest
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.torch_tools.norms import norm_of, scale_like
from purifier.vocabulary import Norm

from ._losses import loss_of, margin

TOLERANCE = 1e-6
"""How much a distance may exceed the budget, because (x + eps) - x is not eps in float32."""
PUSHES = 10
"""Steps along the margin for images that are misclassified from the start, each a quarter of the budget."""
RIGHT, FAR, WITHIN = 0, 1, 2
"""Ranks of a candidate: classified correctly, misclassified beyond the budget, misclassified within it."""
DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""A linear function changes by at most its gradient's dual norm times the distance."""


@dataclass(frozen=True)
class Gap:
    """The logit of a goal class minus the label's, (M,), of logits (M, K)."""

    goals: Tensor
    labels: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        pair = logits.gather(1, torch.stack([self.goals, self.labels], 1))
        return pair[:, 0] - pair[:, 1]

    def select(self, keep: Tensor) -> Gap:
        return Gap(self.goals[keep], self.labels[keep])


class Nearest:
    """The best candidate so far for each of N images: the nearest misclassified one, else the one of highest margin.

    The audit only needs candidates within the budget. So if the target is the model that will judge, an image is done
    once a candidate within eps is misclassified, unless ``minimal`` asks for the smallest distance. On the route
    ``oblivious`` no image is done early: the results are meant for a guard that the attack cannot query, and a
    candidate just beyond the classifier's decision boundary would transfer badly. So within eps the highest margin
    counts, and the best candidate is also moved to the edge of the budget. An image that is misclassified from the
    start has no boundary to look for and is pushed along the margin instead. With a random target, one good draw is
    luck, so only the last candidate of each start counts, unchanged and moved to the edge of the budget, ranked by its
    margin on new draws (with ``minimal``, by its distance). ``confidence`` is the smallest margin at which a candidate
    counts as misclassified.
    """

    def __init__(
        self,
        target: Target,
        pixels: Tensor,
        labels: Tensor,
        threat: Threat,
        *,
        minimal: bool,
        confidence: float = 0,
    ) -> None:
        self.pixels = pixels.clone()
        self.random = target.random(pixels)
        self._confidence = confidence
        self._clean, self._labels, self._threat, self._minimal = pixels, labels, threat, minimal
        self._oblivious = target.route == "oblivious"
        self._rank = torch.full_like(labels, RIGHT)
        self._value = pixels.new_full((len(pixels),), -torch.inf, dtype=torch.float32)
        self._done = torch.zeros_like(labels, dtype=torch.bool)

    def note(self, at: Tensor, pixels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Keep candidates that are better; which are misclassified, and which images still need work, (M,) booleans.

        ``at`` (M,) are positions among the N images, ``pixels`` (M, C, H, W) candidates, ``logits`` (M, K) their
        logits.
        """
        if not self.random:
            self._take(at, pixels, logits)
        return self._fooled(logits, self._labels[at]), ~self._done[at]

    def settle(self, target: Target, at: Tensor, pixels: Tensor) -> None:
        """End a start for the images at positions ``at`` (M,), whose last candidates are ``pixels``."""
        stays = ~self._done[at]
        at, pixels = at[stays], pixels[stays]
        if not len(at):
            return
        chosen = target.select(at)
        if self.random and not self._minimal:
            # The margin beyond the budget would not hold after projection.
            pixels = self._threat.project(pixels, self._clean[at])
        self._take(at, pixels, chosen.logits(pixels))
        if (self.random or self._oblivious) and not self._minimal:
            farthest = self._at_the_edge(pixels if self.random else self.pixels[at], self._clean[at])
            self._take(at, farthest, chosen.logits(farthest))

    def todo(self) -> Tensor:
        """Positions of the images that still need work."""
        return (~self._done).nonzero().squeeze(1)

    def result(self, target: Target) -> Tensor:
        """The results (N, C, H, W), after all starts."""
        if self._oblivious and not self._minimal and self._done.any():
            # On this route, only images that were misclassified from the start are done.
            at = self._done.nonzero().squeeze(1)
            chosen, loss = target.select(at), loss_of("margin", self._labels[at])
            here = clean = self._clean[at]
            for _ in range(PUSHES):
                step = steepest(chosen.gradient(here, loss)[0], self._threat.norm, here)
                here = self._threat.project(here + 2.5 / PUSHES * self._threat.eps * step, clean)
            self._take(at, here, chosen.logits(here))
        return self.pixels

    def _fooled(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(1) != labels) & (margin(logits, labels) >= self._confidence)

    def _take(self, at: Tensor, pixels: Tensor, logits: Tensor) -> None:
        labels, clean = self._labels[at], self._clean[at]
        fooled, margins = self._fooled(logits, labels), margin(logits, labels)
        distance = self._threat.distance(pixels, clean).float()
        within = distance <= self._threat.eps + TOLERANCE
        rank = torch.where(fooled, torch.where(within & (not self._minimal), WITHIN, FAR), RIGHT)
        value = torch.where(fooled, -distance, margins)
        if self.random and not self._minimal:
            rank, value = torch.zeros_like(rank), margins
        elif self._oblivious:
            value = torch.where(rank == WITHIN, margins, value)
        better = (rank > self._rank[at]) | ((rank == self._rank[at]) & (value > self._value[at]))
        self.pixels[at] = torch.where(scale_like(better, pixels), pixels.detach(), self.pixels[at])
        self._rank[at] = torch.where(better, rank, self._rank[at])
        self._value[at] = torch.where(better, value, self._value[at])
        if not self.random:
            # No candidate is nearer than the image itself.
            self._done[at] |= fooled & ((distance == 0) | ((rank == WITHIN) & (not self._oblivious)))

    def _at_the_edge(self, pixels: Tensor, clean: Tensor) -> Tensor:
        """The point at the edge of the budget in the direction of each image, clamped to the box."""
        delta = pixels - clean
        length = self._threat.distance(pixels, clean).clamp_min(torch.finfo(delta.dtype).tiny)
        grown = delta * scale_like((self._threat.eps / length).clamp_max(1e6), delta)
        return self._threat.project((clean + grown).clamp(0, 1), clean)


def onto_balls(delta: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """The nearest point in each image's own ball around 0; ``delta`` is (N, ...), ``radius`` (N,) may be infinite.

    In l1 it is found by sorting (Duchi et al. 2008, figure 1).
    """
    if norm == "linf":
        limit = scale_like(radius, delta)
        return torch.clamp(delta, -limit, limit)
    if norm == "l2":
        length = norm_of(delta, "l2").clamp_min(torch.finfo(delta.dtype).tiny)
        return delta * scale_like((radius / length).clamp_max(1), delta)
    magnitudes = delta.flatten(1).abs()
    descending = magnitudes.sort(1, descending=True).values
    ranks = torch.arange(1, magnitudes.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    thresholds = (descending.cumsum(1) - radius.unsqueeze(1)) / ranks
    kept = (descending > thresholds).sum(1, keepdim=True).clamp_min(1)
    shrink = thresholds.gather(1, kept - 1).clamp_min(0)
    return (delta.flatten(1).sign() * (magnitudes - shrink).clamp_min(0)).view_as(delta)
