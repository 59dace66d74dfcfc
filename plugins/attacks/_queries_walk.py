"""HopSkipJump's images on the move: starts, bisections and rounds along the boundary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from purifier.attacking.steps import steepest
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.seeding import SampleGenerator
from purifier.torch_tools.norms import norm_of, scale_like

from ._queries import all_positions, fooled, votes_for
from ._queries_normal import Normals
from ._queries_starts import attempt

COMPARED = 20
"""Attempts at a start of which the nearest is kept; later ones only serve images that have none yet."""
NEARER, FIRST_BISECTIONS = 0.95, 5
"""A start must be nearer than this fraction of the best distance, and is then bisected that many times."""
TO_BOUNDARY = 10
"""Bisections of the chosen start."""
ARC, RADIAL = 7, 6
"""Queries along the circle and then along the line to the image, for each round in ``l2``."""
SLACK = 0.02, 0.1
"""How far along the line to look for the boundary, at first and if it is farther, as fractions of the distance."""
STEPS = 1.0, 0.25, 4.0
"""Step sizes to compare in ``linf``, as factors on the best one of the round before."""
MEMORY = 0.9
"""Weight of the earlier estimates in ``linf``, per round."""
GAIN, CLAMPS, RANGE = 0.003, 5, 0.7
"""In ``linf`` a step must gain this fraction of the distance, which is then bisected that often, down to RANGE."""
ROUND_QUERIES = len(STEPS) * (1 + CLAMPS)
"""The most decisions that a round takes beside its estimate."""


class Walk:
    """Images on the move; ``found`` (N, C, H, W) are the nearest misclassified ones, initially the clean ones.

    ``queries`` is the limit per image, ``radius`` the sampling radius as a fraction of the distance.
    """

    def __init__(
        self,
        target: Target,
        pixels: Tensor,
        labels: Tensor,
        threat: Threat,
        generator: SampleGenerator,
        *,
        queries: int,
        radius: float,
    ) -> None:
        self._target, self._pixels, self._labels, self._threat = target, pixels, labels, threat
        self._norm, self._generator = threat.norm, generator
        self.votes = votes_for(target, pixels)
        self._pushes = self.votes > 1 or target.route == "oblivious"
        self._left = torch.full_like(labels, queries - self.votes * self._pushes)
        # Nearby, a random target's answers differ because of its noise, not because of the position.
        random = self.votes > 1
        self._normals = Normals(pixels, 1.0 if random else radius, generator, recentre=not random)
        self.found = pixels.clone()
        self._nearest = pixels.new_zeros(len(pixels))
        at = all_positions(labels)
        wrong = self._fooled(at, pixels)
        self._wrong, self._at = at[wrong], at[~wrong]
        self._nearest[self._at] = torch.inf
        self._here = pixels[self._at]
        self._normal, self._length = torch.zeros_like(pixels), torch.ones_like(self._nearest)

    def start(self, tries: int) -> None:
        """Find a misclassified start near each image and bring it to the boundary; images without one are given up."""
        for number in range(tries):
            known = self._nearest[self._at].isfinite()
            needs = torch.where(known, self.votes * (1 + FIRST_BISECTIONS), self.votes)
            rows = ((~known | (number < COMPARED)) & (self._left[self._at] >= needs)).nonzero().squeeze(1)
            if len(rows):
                self._try(rows, number)
        self._keep(self._nearest[self._at].isfinite())
        rows = torch.arange(len(self._at), device=self._at.device)
        self._bisect(rows, self._here, self._distance().new_zeros(len(rows)), self._distance(), TO_BOUNDARY)
        if self._pushes:
            self._start_wrong(tries)

    def _try(self, rows: Tensor, number: int) -> None:
        """Ask about one start for the images in ``rows`` (M,), at a distance that would beat their best one."""
        clean = self._pixels[self._at[rows]]
        tried = attempt(number, clean, self._generator.select(self._at[rows]))
        far = norm_of(tried - clean, self._norm)
        high = torch.minimum(far, NEARER * self._nearest[self._at[rows]])
        hit = self._fooled(self._at[rows], self._between(clean, tried, high))
        rows, tried, high = rows[hit], tried[hit], high[hit]
        self._set(rows, self._between(clean[hit], tried, high))
        self._bisect(rows, tried, torch.zeros_like(high), high, FIRST_BISECTIONS)

    def _start_wrong(self, tries: int) -> None:
        """Where the judge may disagree, move images that are misclassified already to the edge of the threat."""
        searching = torch.ones_like(self._wrong, dtype=torch.bool)
        for number in range(tries):
            at = self._wrong[searching & (self._left[self._wrong] >= self.votes)]
            if not len(at):
                return
            clean = self._pixels[at]
            tried = attempt(number, clean, self._generator.select(at))
            tried = self._threat.project(clean + self._threat.eps * steepest(tried - clean, self._norm), clean)
            hit = self._fooled(at, tried)
            self.found[at[hit]] = tried[hit]
            searching &= ~torch.isin(self._wrong, at[hit])

    def round(self, rounds: int, samples: int) -> None:
        """Estimate the boundary's normal and move along it and back to the boundary."""
        self._keep(self._can_afford(samples + self.votes * ROUND_QUERIES))
        if not len(self._at):
            return
        away = self._here - self._pixels[self._at]
        # On the circle the line to the image turns into the best normal within all estimates so far.
        known = away if self._norm == "l2" else self._normal[self._at]
        known = known / scale_like(norm_of(known, "l2").clamp_min(1e-12), known)
        normal = self._normals.estimate(self._ask, self._at, self._here, known, samples, rounds)
        if self._norm == "l2":
            self._turn(known, norm_of(away, "l2"), normal)
        else:
            self._normal[self._at] = MEMORY * self._normal[self._at] + normal
            self._step()

    def _turn(self, outwards: Tensor, distance: Tensor, normal: Tensor) -> None:
        """Bisect on the circle through image and point, in the plane of ``outwards`` and ``normal``, for the boundary.

        If it is flat, it meets the circle again at the nearest of its points in that plane.
        """
        clean, low = self._pixels[self._at], torch.zeros_like(distance)
        high = torch.full_like(low, math.pi / 2)
        for _ in range(ARC):
            angle = (low + high) / 2
            cos, sin = scale_like(angle.cos(), clean), scale_like(angle.sin(), clean)
            turned = (clean + scale_like(distance, clean) * cos * (cos * outwards + sin * normal)).clamp(0, 1)
            hit = self._fooled(self._at, turned)
            low, high = torch.where(hit, angle, low), torch.where(hit, high, angle)
            self._set(hit.nonzero().squeeze(1), turned[hit])
        rows, high = torch.arange(len(low), device=low.device), self._distance()
        near = self._between(clean, self._here, (1 - SLACK[0]) * high)
        hit = self._fooled(self._at, near)
        low = torch.where(hit, 1 - SLACK[1], 1 - SLACK[0]) * high
        high = torch.where(hit, (1 - SLACK[0]) * high, high)
        far = self._here.clone()
        self._set(hit.nonzero().squeeze(1), near[hit])
        self._bisect(rows, far, low, high, RADIAL - 1)

    def _step(self) -> None:
        """Add several multiples of the normal's signs and keep the one that can then be clamped the nearest."""
        direction, length, distance = self._normal[self._at].sign(), self._length[self._at], self._distance()
        best, start = length / 2, self._here
        for factor in STEPS:
            size = factor * length
            far = (start + scale_like(size * distance, start) * direction).clamp(0, 1)
            high = (1 - GAIN) * self._distance()
            near = self._between(self._pixels[self._at], far, high)
            hit = self._fooled(self._at, near)
            rows = hit.nonzero().squeeze(1)
            best[rows] = size[rows]
            self._set(rows, near[rows])
            self._bisect(rows, far[rows], RANGE * high[rows], high[rows], CLAMPS)
        self._length[self._at] = best.clamp(1e-3, 2)

    def narrow(self) -> bool:
        """Drop images out of queries or fooled in the threat (unless the judge may disagree); whether any are left."""
        far = (self._nearest[self._at] > self._threat.eps) | self._pushes
        self._keep(far & self._can_afford(2 + self.votes * ROUND_QUERIES))
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

    def _bisect(self, rows: Tensor, far: Tensor, low: Tensor, high: Tensor, times: int) -> None:
        """Halve the distances between ``low`` (right) and ``high`` (misclassified) (M,) on the way to ``far``."""
        for _ in range(times):
            able = self._left[self._at[rows]] >= self.votes
            rows, far, low, high = rows[able], far[able], low[able], high[able]
            if not len(rows):
                return
            middle = (low + high) / 2
            point = self._between(self._pixels[self._at[rows]], far, middle)
            hit = self._fooled(self._at[rows], point)
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
            self._set(rows[hit], point[hit])

    def _ask(self, at: Tensor, pixels: Tensor) -> Tensor:
        return self._fooled(at, pixels, votes=1)

    def _fooled(self, at: Tensor, pixels: Tensor, *, votes: int | None = None) -> Tensor:
        """Whether ``pixels`` (M, C, H, W) are misclassified; ``at`` (M,) are their images, which may repeat."""
        votes = self.votes if votes is None else votes
        self._left.index_add_(0, at, torch.full_like(at, -votes))
        return fooled(self._target, at, pixels, self._labels[at], votes=votes, random=self.votes > 1)

    def _between(self, clean: Tensor, far: Tensor, distance: Tensor) -> Tensor:
        """Points at a distance (M,) from ``clean`` on the line to ``far`` in ``l2``, clamped to it in ``linf``."""
        if self._norm == "l2":
            whole = norm_of(far - clean, "l2").clamp_min(torch.finfo(far.dtype).tiny)
            return torch.lerp(clean, far, scale_like(distance / whole, clean))
        limit = scale_like(distance, clean)
        return torch.clamp(far, clean - limit, clean + limit)

    def _set(self, rows: Tensor, points: Tensor) -> None:
        """Move to misclassified points and record them if they are nearer than those known."""
        self._here[rows] = points
        at = self._at[rows]
        distance = norm_of(points - self._pixels[at], self._norm)
        better = distance < self._nearest[at]
        self.found[at[better]], self._nearest[at[better]] = points[better], distance[better]

    def _distance(self) -> Tensor:
        return norm_of(self._here - self._pixels[self._at], self._norm)

    def _can_afford(self, queries: int) -> Tensor:
        return self._left[self._at] >= queries

    def _keep(self, rows: Tensor) -> None:
        self._at, self._here = self._at[rows], self._here[rows]
