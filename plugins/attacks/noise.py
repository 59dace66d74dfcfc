"""Random noise: what any attack has to beat."""

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

from ._queries import everyone, fooled, votes_for


@dataclass(frozen=True)
class RandomNoise(Attack):
    """Draws from the threat until one is misclassified; each uses a query, and nothing is learnt from it.

    The draws alternate between the ball's surface (in ``linf`` its corners) and its inside, uniformly. An image comes
    back as the first draw that fools, or else as the last on the surface; one misclassified as it is comes back
    unchanged. Under a random target most of several answers decide. There, where wrong answers can be made more, and
    on the route ``oblivious``, where the judge may have been right, a misclassified image is drawn for as well.

    Parameters
    ----------
    draws
        How many draws an image gets, at least 1.
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
        found, at = pixels.clone(), everyone(labels)
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
