"""HopSkipJump: a walk along the decision boundary using only predicted labels (Chen, Jordan & Wainwright 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._queries_walk import ROUND_QUERIES, Walk

LONGEST_ESTIMATE = 20
"""No estimate after the first takes more than this fraction of all queries, because what is left over is not used."""


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """Moves from a misclassified start to the boundary, then along it towards the image (after algorithm 2).

    Each round estimates the boundary's normal from labels of random points nearby, moves along it as far as that
    brings it nearer to the image, and returns to the boundary by bisection. It differs from the paper where that found
    nearer images with the same queries: it starts at the nearest of several misclassified images; the points are drawn
    orthogonally to what is known of the normal, at first smoothly (Li et al. 2020), around a centre where half of them
    are misclassified; in ``l2`` it moves on the circle whose diameter is the line to the image (Reza et al. 2023,
    CGBA); in ``linf`` the estimates of all rounds add up, and several step sizes are compared.

    An image is done when it is fooled within the threat, when its queries are used up, or at once if it is
    misclassified from the start. One without a misclassified start is returned unchanged. Results outside the threat
    are the nearest ones found, for the core to project.

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
        Random points for the first estimate, at least 2; later estimates use up to sqrt(round) times as many.
    radius
        Sampling radius of an estimate, as a fraction of the distance to the image. A purifier that rounds its pixels
        needs a larger one.
    starts
        Attempts at a misclassified start, at least 1: the negative, black, white, then noise at several scales, and
        mixtures of it with the image.
    """

    needs: ClassVar[Literal["labels"]] = "labels"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    queries: int = 5000
    init_samples: int = 100
    radius: float = 0.1
    starts: int = 100

    def __post_init__(self) -> None:
        if self.queries < 1 or self.starts < 1:
            raise ConfigError(
                f"attack 'hopskipjump': queries and starts must be at least 1, got {self.queries} and {self.starts}"
            )
        if self.init_samples < 2:
            raise ConfigError(f"attack 'hopskipjump': init_samples must be at least 2, got {self.init_samples}")
        if not 0 < self.radius < math.inf:
            raise ConfigError(f"attack 'hopskipjump': radius must be a positive number, got {self.radius}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        walk = Walk(target, pixels, labels, threat, generator, queries=self.queries, radius=self.radius)
        walk.start(self.starts)
        rounds, longest = 1, max(self.init_samples, self.queries // LONGEST_ESTIMATE)
        # The first estimate of a small budget takes what there is.
        affordable = self.queries // 2 - walk.votes * ROUND_QUERIES
        while walk.narrow():
            samples = min(int(self.init_samples * math.sqrt(rounds)), longest)
            walk.round(rounds, max(2, min(samples, affordable)))
            rounds += 1
        walk.push()
        return walk.found
