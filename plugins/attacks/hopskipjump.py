"""HopSkipJump: a walk along the decision boundary using only predicted labels (Chen, Jordan & Wainwright 2020)."""

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

from ._queries import all_positions, blocks, fooled, votes_for

NOISE_SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of noise in successive attempts at a start: pure noise may be classified as the image's own class."""
FIRST_RADIUS = 0.1
"""Sampling radius of the first gradient estimate, as a fraction of the range of pixels."""
BISECTIONS = 15
"""How often to halve a step that ends in the right class before giving it up."""


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """Moves from a misclassified start to the boundary, then along it towards the image (algorithm 2 of the paper).

    Each round estimates the boundary's normal from labels of random points nearby, steps along it as far as it stays
    misclassified, and returns to the boundary by bisection. An image is done when it is fooled within the threat, when
    its queries are used up, or at once if it is misclassified from the start. One without a misclassified start is
    returned unchanged. Results outside the threat are the nearest ones found, for the core to project.

    With a random target the majority of several queries decides, and estimates sample at the distance of the image,
    where the target's noise does not drown the signal. There and on the route ``oblivious`` no image is done early: a
    result within the threat is finally moved to the edge of the threat, if it stays misclassified there, because it is
    then more likely to fool the judge too. An image that is misclassified from the start has no boundary to walk along
    there; its result is a point at the edge of the threat, towards its start.

    Parameters
    ----------
    queries
        Maximum number of queries per image, at least 1.
    init_samples
        Random points for the first estimate, at least 2; later estimates use sqrt(round) times as many.
    gamma
        Scales the tolerance of the bisection, ``gamma / d^(3/2)`` in ``l2`` and ``gamma / d^2`` in ``linf``.
    starts
        Attempts at a misclassified start, at least 1: uniform noise, and mixtures of it with the image.
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
            radius = FIRST_RADIUS if rounds == 1 else self.gamma / features
            walk.step(rounds, int(self.init_samples * math.sqrt(rounds)), radius)
            walk.to_boundary()
        walk.push()
        return walk.found


class _Walk:
    """Images on the move; ``found`` (N, C, H, W) are the nearest misclassified ones, initially the clean ones."""

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
        at = all_positions(labels)
        wrong = self._fooled(at, pixels)
        self._wrong, self._at = at[wrong], at[~wrong]
        self._nearest[self._at] = torch.inf
        self._here = pixels[self._at]

    def start(self, tries: int) -> None:
        """Find a misclassified start for each image; images without one are given up."""
        self._here, found = self._find_starts(self._at, tries, edge=False)
        self._keep(found)
        self._take(torch.ones_like(self._at, dtype=torch.bool))
        if self._pushes:
            self.found[self._wrong] = self._find_starts(self._wrong, tries, edge=True)[0]

    def _find_starts(self, at: Tensor, tries: int, *, edge: bool) -> tuple[Tensor, Tensor]:
        """The first misclassified attempts for the images at ``at`` (M,), and which have one, (M,) booleans.

        With ``edge`` they are moved to the edge of the threat before the query.
        """
        here, searching = self._pixels[at].clone(), torch.ones_like(at, dtype=torch.bool)
        for number in range(tries):
            rows = (searching & (self._left[at] >= self._votes)).nonzero().squeeze(1)
            if not len(rows):
                break
            clean, streams = self._pixels[at[rows]], self._generator.select(at[rows])
            tried = torch.lerp(clean, streams.uniform(clean.shape[1:], clean), NOISE_SHARES[number % len(NOISE_SHARES)])
            if edge:
                away = self._threat.eps * steepest(tried - clean, self._norm)
                tried = self._threat.project(clean + away, clean)
            hit = self._fooled(at[rows], tried)
            here[rows[hit]], searching[rows[hit]] = tried[hit], False
        return here, ~searching

    def to_boundary(self) -> None:
        """Bisect between image and misclassified point until the boundary is known to the tolerance (algorithm 1)."""
        clean = self._pixels[self._at]
        far = norm_of(self._here - clean, self._norm)
        high = torch.ones_like(far) if self._norm == "l2" else far.clone()
        low = torch.zeros_like(far)
        goal = self._tolerance * (1 if self._norm == "l2" else far.clamp_max(1))
        while True:
            rows = ((high - low > goal) & self._can_afford(self._votes)).nonzero().squeeze(1)
            # In float32 there may be no number left in between.
            middle = (high[rows] + low[rows]) / 2
            active = (middle > low[rows]) & (middle < high[rows])
            rows, middle = rows[active], middle[active]
            if not len(rows):
                break
            hit = self._fooled(self._at[rows], self._between(clean[rows], self._here[rows], middle))
            high[rows] = torch.where(hit, middle, high[rows])
            low[rows] = torch.where(hit, low[rows], middle)
        self._here = self._between(clean, self._here, high)
        # Otherwise a lucky draw would count as the nearest image.
        sure = torch.ones_like(self._at, dtype=torch.bool)
        self._take(sure if self._votes == 1 else self._fooled(self._at, self._here))

    def step(self, rounds: int, samples: int, radius: float) -> None:
        """Estimate the boundary's normal (equation 9) and step along it, halving the step until it is misclassified.

        ``radius`` is the sampling radius of the estimate, from the second round on as a fraction of the distance.
        """
        self._keep(self._can_afford(samples + self._votes))
        length = self._distance()
        if self._votes > 1:
            # Nearby, answers differ because of the target's noise, not because of the position.
            radii = norm_of(self._here - self._pixels[self._at], "l2")
        else:
            radii = torch.full_like(length, radius) if rounds == 1 else radius * length
        direction = steepest(self._normal(samples, radii), self._norm)
        length = length / math.sqrt(rounds)
        active = torch.ones_like(self._at, dtype=torch.bool)
        for _ in range(BISECTIONS):
            rows = (active & self._can_afford(self._votes)).nonzero().squeeze(1)
            if not len(rows):
                break
            moved = (self._here[rows] + direction[rows] * scale_like(length[rows], direction)).clamp(0, 1)
            hit = self._fooled(self._at[rows], moved)
            self._here[rows[hit]] = moved[hit]
            active[rows[hit]] = False
            length = length / 2

    def narrow(self) -> bool:
        """Drop images out of queries or fooled in the threat (unless the judge may disagree); whether any are left."""
        far = (self._nearest[self._at] > self._threat.eps) | self._pushes
        self._keep(far & self._can_afford(2 + self._votes))
        return len(self._at) > 0

    def push(self) -> None:
        """Where the judge may disagree, move images inside the threat to its edge, if they stay misclassified there."""
        if not self._pushes:
            return
        at = ((self._nearest <= self._threat.eps) & (self._nearest > 0)).nonzero().squeeze(1)
        clean = self._pixels[at]
        longer = scale_like(self._threat.eps / self._nearest[at], clean)
        out = self._threat.project(clean + (self.found[at] - clean) * longer, clean)
        hit = self._fooled(at, out)
        self.found[at[hit]] = out[hit]

    def _normal(self, samples: int, radii: Tensor) -> Tensor:
        """The direction to the misclassified side at ``here``, (M, C, H, W), from labels of points nearby."""
        shape = self._here.shape[1:]
        weighted, plain = torch.zeros_like(self._here), torch.zeros_like(self._here)
        signs = self._here.new_zeros(len(self._at))
        generator, radius = self._generator.select(self._at), radii.view(-1, 1, 1, 1, 1)
        for count in blocks(samples, shape.numel()):
            if self._norm == "l2":
                drawn = generator.normal((count, *shape), self._here)
            else:
                drawn = 2 * generator.uniform((count, *shape), self._here) - 1
            drawn = drawn / drawn.flatten(2).norm(dim=2).view(*drawn.shape[:2], 1, 1, 1)
            around = (self._here.unsqueeze(1) + radius * drawn).clamp(0, 1)
            # Use the directions after clamping, because those are the ones queried.
            drawn = (around - self._here.unsqueeze(1)) / radius
            at = self._at.repeat_interleave(count)
            answer = 2 * self._fooled(at, around.flatten(0, 1), votes=1).view(-1, count).to(drawn) - 1
            weighted += torch.einsum("ns,ns...->n...", answer, drawn)
            plain += drawn.sum(1)
            signs += answer.sum(1)
        mean = signs / samples
        # The mean is a baseline against lopsided answers; if all agree, it would leave nothing.
        mean = torch.where(mean.abs() == 1, 0, mean)
        return weighted - plain * scale_like(mean, plain)

    def _fooled(self, at: Tensor, pixels: Tensor, *, votes: int | None = None) -> Tensor:
        """Whether ``pixels`` (M, C, H, W) are misclassified; ``at`` (M,) are their images, which may repeat."""
        votes = self._votes if votes is None else votes
        self._left.index_add_(0, at, torch.full_like(at, -votes))
        return fooled(self._target, at, pixels, self._labels[at], votes=votes, random=self._votes > 1)

    def _between(self, clean: Tensor, far: Tensor, position: Tensor) -> Tensor:
        """Points from ``clean`` to ``far``: at a fraction (M,) in ``l2``, clamped to a distance (M,) in ``linf``."""
        position = scale_like(position, clean)
        if self._norm == "l2":
            return torch.lerp(clean, far, position)
        return torch.clamp(far, clean - position, clean + position)

    def _take(self, rows: Tensor) -> None:
        """Record the current points of ``rows`` (M,) if they are nearer than those known."""
        distance = self._distance()
        rows = rows & (distance < self._nearest[self._at])
        at = self._at[rows]
        self.found[at], self._nearest[at] = self._here[rows], distance[rows]

    def _distance(self) -> Tensor:
        return norm_of(self._here - self._pixels[self._at], self._norm)

    def _can_afford(self, queries: int) -> Tensor:
        return self._left[self._at] >= queries

    def _keep(self, rows: Tensor) -> None:
        self._at, self._here = self._at[rows], self._here[rows]
