"""What minimal-norm attacks share: the nearest misclassified image so far, balls of a radius for each image."""

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
"""What a distance may exceed the budget by: (x + eps) - x is not eps in float32."""
PUSHES = 10
"""Steps along the margin for images that are misclassified as they are, each a quarter of the budget."""
RIGHT, FAR, WITHIN = 0, 1, 2
"""Ranks of a candidate: still right, misclassified beyond the budget, misclassified within it."""
DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""A linear function changes by at most its gradient's dual norm times the distance."""


@dataclass(frozen=True)
class Gap:
    """The logit of a class to reach minus the label's, of logits (M, K): (M,)."""

    goals: Tensor
    labels: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        pair = logits.gather(1, torch.stack([self.goals, self.labels], 1))
        return pair[:, 0] - pair[:, 1]

    def select(self, keep: Tensor) -> Gap:
        return Gap(self.goals[keep], self.labels[keep])


class Nearest:
    """The best image so far for each of N: misclassified before all, then the nearest, else of the highest margin.

    The audit asks for the budget only. So where the target is the very model that will judge, an image leaves when one
    within eps is misclassified, unless ``minimal`` asks for the smallest distance. On the route ``oblivious`` no image
    leaves: its images are meant for a guard the attack cannot ask, and one just over the classifier's edge would
    transfer badly, so within eps the highest margin counts, and the best image is moved to the budget's edge as well.
    One that is misclassified as it is has no edge to look for and is pushed along the margin instead.
    Under a random target one good draw is luck: there only the last image of each start is a candidate, as it is and
    moved to the budget's edge, ranked by its margin on fresh draws (with ``minimal``: by its distance).
    ``confidence`` is the margin from which on an image counts as misclassified.
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
        """Take over what is better; say which are misclassified and which images still need work, (M,) booleans each.

        ``at`` (M,) are positions among the N, ``pixels`` (M, C, H, W) candidates, ``logits`` (M, K) theirs.
        """
        if not self.random:
            self._take(at, pixels, logits)
        return self._fooled(logits, self._labels[at]), ~self._done[at]

    def settle(self, target: Target, at: Tensor, pixels: Tensor) -> None:
        """The end of a start for the images at positions ``at`` (M,), whose last candidates are ``pixels``."""
        stays = ~self._done[at]
        at, pixels = at[stays], pixels[stays]
        if not len(at):
            return
        chosen = target.select(at)
        if self.random and not self._minimal:
            # A margin from beyond the budget would not be what is left of it inside.
            pixels = self._threat.project(pixels, self._clean[at])
        self._take(at, pixels, chosen.logits(pixels))
        if (self.random or self._oblivious) and not self._minimal:
            farthest = self._at_full_length(pixels if self.random else self.pixels[at], self._clean[at])
            self._take(at, farthest, chosen.logits(farthest))

    def todo(self) -> Tensor:
        """Positions of the images that still need work."""
        return (~self._done).nonzero().squeeze(1)

    def result(self, target: Target) -> Tensor:
        """The images (N, C, H, W), at the end of all starts."""
        if self._oblivious and not self._minimal and self._done.any():
            # On this route only images misclassified as they are have left.
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
        fooled, wrongness = self._fooled(logits, labels), margin(logits, labels)
        distance = self._threat.distance(pixels, clean).float()
        within = distance <= self._threat.eps + TOLERANCE
        rank = torch.where(fooled, torch.where(within & (not self._minimal), WITHIN, FAR), RIGHT)
        value = torch.where(fooled, -distance, wrongness)
        if self.random and not self._minimal:
            rank, value = torch.zeros_like(rank), wrongness
        elif self._oblivious:
            value = torch.where(rank == WITHIN, wrongness, value)
        better = (rank > self._rank[at]) | ((rank == self._rank[at]) & (value > self._value[at]))
        self.pixels[at] = torch.where(scale_like(better, pixels), pixels.detach(), self.pixels[at])
        self._rank[at] = torch.where(better, rank, self._rank[at])
        self._value[at] = torch.where(better, value, self._value[at])
        if not self.random:
            # Nothing is nearer than the image itself.
            self._done[at] |= fooled & ((distance == 0) | ((rank == WITHIN) & (not self._oblivious)))

    def _at_full_length(self, pixels: Tensor, clean: Tensor) -> Tensor:
        """The point of the budget's edge in the direction of each image, cut to the box."""
        delta = pixels - clean
        length = self._threat.distance(pixels, clean).clamp_min(torch.finfo(delta.dtype).tiny)
        grown = delta * scale_like((self._threat.eps / length).clamp_max(1e6), delta)
        return self._threat.project((clean + grown).clamp(0, 1), clean)


def onto_balls(delta: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """The nearest point of each image's own ball around 0: ``delta`` (N, ...), ``radius`` (N,), may be infinite.

    For l1 by sorting (Duchi et al. 2008, figure 1).
    """
    if norm == "linf":
        limit = scale_like(radius, delta)
        return torch.clamp(delta, -limit, limit)
    if norm == "l2":
        length = norm_of(delta, "l2").clamp_min(torch.finfo(delta.dtype).tiny)
        return delta * scale_like((radius / length).clamp_max(1), delta)
    sizes = delta.flatten(1).abs()
    falling = sizes.sort(1, descending=True).values
    ranks = torch.arange(1, sizes.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    thresholds = (falling.cumsum(1) - radius.unsqueeze(1)) / ranks
    kept = (falling > thresholds).sum(1, keepdim=True).clamp_min(1)
    shrink = thresholds.gather(1, kept - 1).clamp_min(0)
    return (delta.flatten(1).sign() * (sizes - shrink).clamp_min(0)).view_as(delta)
