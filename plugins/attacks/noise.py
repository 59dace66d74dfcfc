"""Random noise: the baseline that any attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.steps import random_direction, random_start
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._queries import all_positions, fooled, votes_for


@dataclass(frozen=True)
class RandomNoise(Attack):
    """Draws from the threat until one is misclassified; each costs a query, and nothing is learned from it.

    The draws alternate between the ball's surface (in ``linf`` its corners) and its interior, uniformly. The result is
    the first draw that fools the target, or else the last one on the surface; an image that is misclassified from the
    start is returned unchanged. With a random target the majority of several queries decides. There, because it can be
    misclassified more often, and on the route ``oblivious``, because the judge may classify it correctly, such an image
    gets draws too.

    Parameters
    ----------
    draws
        Draws per image, at least 1.
    """

    needs: ClassVar[Literal["labels"]] = "labels"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    draws: int = 20

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"attack 'noise': draws must be at least 1, got {self.draws}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        votes = votes_for(target, pixels)
        found, at = pixels.clone(), all_positions(labels)
        if votes == 1 and target.route != "oblivious":
            at = at[~fooled(target, at, pixels, labels, votes=votes)]
        for draw in range(self.draws):
            if not len(at):
                break
            clean, streams = pixels[at], generator.select(at)
            if draw % 2:
                noisy = random_start(clean, threat, streams)
            else:
                jump = threat.eps * random_direction(clean, threat.norm, streams)
                found[at] = noisy = threat.project(clean + jump, clean)
            hit = fooled(target, at, noisy, labels[at], votes=votes)
            found[at[hit]] = noisy[hit]
            at = at[~hit]
        return found
