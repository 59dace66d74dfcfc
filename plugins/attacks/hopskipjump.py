"""HopSkipJump: a walk along the decision boundary by predicted labels alone (Chen, Jordan & Wainwright 2020)."""

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
from purifier.torch_tools.norms import norm_of, scale_like

from ._queries import blocks, everyone, fooled, votes_for

MIXES = (1.0, 0.75, 0.5, 0.25)
"""How much noise the tries for a start hold, one after the other: pure noise may look like an image's own class."""
FIRST_REACH = 0.1
"""How far the first guess of a gradient looks, as a share of the span of pixels."""
BISECTIONS = 15
"""How often a step that ends in the right class is halved before it is given up."""


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """From a misclassified start to the boundary, then steps along it towards the image (algorithm 2 of the paper).

    Each round guesses the boundary's normal from labels of random points around, steps along it as far as the answers
    allow, and goes back to the boundary by halving. An image leaves when it is fooled within the threat, when its
    queries are spent, or at once if it is misclassified as it is. One that finds no start comes back unchanged. What
    lies outside the threat at the end is the nearest image found, for the core to project.

    Under a random target most of several answers decide, each a query, and guesses look as far as the image is away,
    where its noise does not drown what they look for. There and on the route ``oblivious`` no image
    leaves early: one found within the threat is at last pushed on to the threat's edge, if it stays fooled there, where
    other answers than those heard are wrong as well. One misclassified as it is has no boundary to walk along there and
    comes back from the threat's edge, towards its start.

    Parameters
    ----------
    queries
        Most queries of an image, at least 1.
    init_samples
        Random points of the first guess, at least 2; later guesses take the square root of the round times as many.
    gamma
        Scales the tolerance of the halvings, ``gamma / d^(3/2)`` in ``l2`` and ``gamma / d^2`` in ``linf``.
    starts
        Tries for a misclassified start, at least 1: uniform noise, and its mixtures with the image.
    """

    needs: ClassVar[Literal["labels"]] = "labels"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    queries: int = 5000
    init_samples: int = 100
    gamma: float = 1.0
    starts: int = 100

    def __post_init__(self) -> None:
        if self.queries < 1 or self.starts < 1:
            raise ConfigError(
                f"attack 'hopskipjump': queries and starts must be at least 1, got {self.queries} and {self.starts}"
            )
        if self.init_samples < 2:
            raise ConfigError(f"attack 'hopskipjump': init_samples must be at least 2, got {self.init_samples}")
        if not 0 < self.gamma < math.inf:
            raise ConfigError(f"attack 'hopskipjump': gamma must be a positive number, got {self.gamma}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        features = pixels[0].numel()
        tolerance = self.gamma / features ** (1.5 if threat.norm == "l2" else 2)
        walk = _Walk(target, pixels, labels, threat, generator, tolerance=tolerance, queries=self.queries)
        walk.start(self.starts)
        walk.to_boundary()
        rounds = 0
        while walk.narrow():
            rounds += 1
            reach = FIRST_REACH if rounds == 1 else self.gamma / features
            walk.step(rounds, int(self.init_samples * math.sqrt(rounds)), reach)
            walk.to_boundary()
        walk.push()
        return walk.found


class _Walk:
    """Images on their way; ``found`` (N, C, H, W) are the nearest misclassified ones, at first the clean ones."""

    def __init__(
        self,
        target: Target,
        pixels: Tensor,
        labels: Tensor,
        threat: Threat,
        generator: SampleGenerator,
        *,
        tolerance: float,
        queries: int,
    ) -> None:
        self._target, self._pixels, self._labels, self._threat = target, pixels, labels, threat
        self._norm, self._tolerance, self._generator = threat.norm, tolerance, generator
        self._votes = votes_for(target, pixels)
        self._pushes = self._votes > 1 or target.route == "oblivious"
        self._left = torch.full_like(labels, queries - self._votes * self._pushes)
        self.found = pixels.clone()
        self._nearest = pixels.new_zeros(len(pixels))
        at = everyone(labels)
        wrong = self._fooled(at, pixels)
        self._wrong, self._at = at[wrong], at[~wrong]
        self._nearest[self._at] = torch.inf
        self._here = pixels[self._at]

    def start(self, tries: int) -> None:
        """Find a misclassified start for each image; those without are given up."""
        self._here, found = self._tried(self._at, tries, edge=False)
        self._keep(found)
        self._take(torch.ones_like(self._at, dtype=torch.bool))
        if self._pushes:
            self.found[self._wrong] = self._tried(self._wrong, tries, edge=True)[0]

    def _tried(self, at: Tensor, tries: int, *, edge: bool) -> tuple[Tensor, Tensor]:
        """The first misclassified tries for the images at ``at`` (M,), and which have one, (M,) booleans.

        With ``edge`` they are moved to the threat's edge before they are asked.
        """
        here, searching = self._pixels[at].clone(), torch.ones_like(at, dtype=torch.bool)
        for number in range(tries):
            rows = (searching & (self._left[at] >= self._votes)).nonzero().squeeze(1)
            if not len(rows):
                break
            clean, streams = self._pixels[at[rows]], self._generator.select(at[rows])
            tried = torch.lerp(clean, streams.uniform(clean.shape[1:], clean), MIXES[number % len(MIXES)])
            if edge:
                away = self._threat.eps * steepest(tried - clean, self._norm)
                tried = self._threat.project(clean + away, clean)
            hit = self._fooled(at[rows], tried)
            here[rows[hit]], searching[rows[hit]] = tried[hit], False
        return here, ~searching

    def to_boundary(self) -> None:
        """Halve between image and misclassified point until the boundary is known to the tolerance (algorithm 1)."""
        clean = self._pixels[self._at]
        far = norm_of(self._here - clean, self._norm)
        high = torch.ones_like(far) if self._norm == "l2" else far.clone()
        low = torch.zeros_like(far)
        goal = self._tolerance * (1 if self._norm == "l2" else far.clamp_max(1))
        while True:
            rows = ((high - low > goal) & self._can_pay(self._votes)).nonzero().squeeze(1)
            # Float32 has no number left between two neighbours.
            middle = (high[rows] + low[rows]) / 2
            open_ = (middle > low[rows]) & (middle < high[rows])
            rows, middle = rows[open_], middle[open_]
            if not len(rows):
                break
            hit = self._fooled(self._at[rows], self._between(clean[rows], self._here[rows], middle))
            high[rows] = torch.where(hit, middle, high[rows])
            low[rows] = torch.where(hit, low[rows], middle)
        self._here = self._between(clean, self._here, high)
        # A lucky draw would be the nearest of all.
        sure = torch.ones_like(self._at, dtype=torch.bool)
        self._take(sure if self._votes == 1 else self._fooled(self._at, self._here))

    def step(self, rounds: int, samples: int, reach: float) -> None:
        """Guess the boundary's normal (equation 9) and step along it, halving until the step stays misclassified.

        ``reach`` is how far the guess looks, from the second round on as a share of the distance.
        """
        self._keep(self._can_pay(samples + self._votes))
        length = self._distance()
        if self._votes > 1:
            # Nearby, the answers differ by the target's noise and not by where they were asked.
            reaches = norm_of(self._here - self._pixels[self._at], "l2")
        else:
            reaches = torch.full_like(length, reach) if rounds == 1 else reach * length
        direction = steepest(self._normal(samples, reaches), self._norm)
        length = length / math.sqrt(rounds)
        open_ = torch.ones_like(self._at, dtype=torch.bool)
        for _ in range(BISECTIONS):
            rows = (open_ & self._can_pay(self._votes)).nonzero().squeeze(1)
            if not len(rows):
                break
            moved = (self._here[rows] + direction[rows] * scale_like(length[rows], direction)).clamp(0, 1)
            hit = self._fooled(self._at[rows], moved)
            self._here[rows[hit]] = moved[hit]
            open_[rows[hit]] = False
            length = length / 2

    def narrow(self) -> bool:
        """Let go the images fooled within the threat, unless another judges; those out of queries; are any left?"""
        far = (self._nearest[self._at] > self._threat.eps) | self._pushes
        self._keep(far & self._can_pay(2 + self._votes))
        return len(self._at) > 0

    def push(self) -> None:
        """Where another judges than who answered: move what lies inside the threat to its edge, if it stays fooled."""
        if not self._pushes:
            return
        at = ((self._nearest <= self._threat.eps) & (self._nearest > 0)).nonzero().squeeze(1)
        clean = self._pixels[at]
        longer = scale_like(self._threat.eps / self._nearest[at], clean)
        out = self._threat.project(clean + (self.found[at] - clean) * longer, clean)
        hit = self._fooled(at, out)
        self.found[at[hit]] = out[hit]

    def _normal(self, samples: int, reaches: Tensor) -> Tensor:
        """The direction into the misclassified side at ``here``, (M, C, H, W), from labels of points around."""
        shape = self._here.shape[1:]
        weighted, plain = torch.zeros_like(self._here), torch.zeros_like(self._here)
        signs = self._here.new_zeros(len(self._at))
        generator, reach = self._generator.select(self._at), reaches.view(-1, 1, 1, 1, 1)
        for count in blocks(samples, shape.numel()):
            if self._norm == "l2":
                drawn = generator.normal((count, *shape), self._here)
            else:
                drawn = 2 * generator.uniform((count, *shape), self._here) - 1
            drawn = drawn / drawn.flatten(2).norm(dim=2).view(*drawn.shape[:2], 1, 1, 1)
            around = (self._here.unsqueeze(1) + reach * drawn).clamp(0, 1)
            # What the box took away was not asked about.
            drawn = (around - self._here.unsqueeze(1)) / reach
            at = self._at.repeat_interleave(count)
            answer = 2 * self._fooled(at, around.flatten(0, 1), votes=1).view(-1, count).to(drawn) - 1
            weighted += torch.einsum("ns,ns...->n...", answer, drawn)
            plain += drawn.sum(1)
            signs += answer.sum(1)
        mean = signs / samples
        # The mean is a baseline against lopsided answers; where all agree it would leave nothing.
        mean = torch.where(mean.abs() == 1, 0, mean)
        return weighted - plain * scale_like(mean, plain)

    def _fooled(self, at: Tensor, pixels: Tensor, *, votes: int | None = None) -> Tensor:
        """The verdict on ``pixels`` (M, C, H, W) for the images at ``at`` (M,), in any number; counts the queries."""
        votes = self._votes if votes is None else votes
        self._left.index_add_(0, at, torch.full_like(at, -votes))
        return fooled(self._target, at, pixels, self._labels[at], votes=votes, random=self._votes > 1)

    def _between(self, clean: Tensor, far: Tensor, share: Tensor) -> Tensor:
        """Points from ``clean`` to ``far``: a share (M,) of the way in ``l2``, cut to a distance (M,) in ``linf``."""
        share = scale_like(share, clean)
        if self._norm == "l2":
            return torch.lerp(clean, far, share)
        return torch.clamp(far, clean - share, clean + share)

    def _take(self, rows: Tensor) -> None:
        """Remember where ``rows`` (M,) of the walk stand now, if no nearer place is known."""
        distance = self._distance()
        rows = rows & (distance < self._nearest[self._at])
        at = self._at[rows]
        self.found[at], self._nearest[at] = self._here[rows], distance[rows]

    def _distance(self) -> Tensor:
        return norm_of(self._here - self._pixels[self._at], self._norm)

    def _can_pay(self, queries: int) -> Tensor:
        return self._left[self._at] >= queries

    def _keep(self, rows: Tensor) -> None:
        self._at, self._here = self._at[rows], self._here[rows]
