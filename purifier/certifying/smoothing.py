"""Randomised smoothing (Cohen, Rosenfeld & Kolter 2019): certificates in l2 for any model that can be asked.

The smoothed model answers what the model itself answers most often when normal noise is added to the image. Noisy
images are clamped to [0, 1] before the model sees them; that is a fixed part of the model, so the certificate stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ..auditing.subject import NO_ANSWER, Subject
from ..errors import ConfigError
from ..seeding import SampleGenerator, mix_seed
from .binomial import fewest_trials, lower_bound


@dataclass(frozen=True)
class Vote:
    """What the smoothed model answers for one image, and how sure that is."""

    answer: int
    """The class; ``NO_ANSWER`` if it abstains."""
    count: int
    """How many of the samples were given that class."""
    radius: float
    """No change of the image of less than this l2 norm, in pixel units, changes the answer; 0 if it abstains."""


@dataclass(frozen=True)
class Smoothing:
    """How to smooth.

    Parameters
    ----------
    sigma
        Standard deviation of the noise in pixel units, above 0.
    samples
        How many noisy copies of an image are asked about to bound the probability of its answer.
    first
        How many others find out which answer that is.
    alpha
        The probability, for each image, that its certificate does not hold.

    Raises
    ------
    ConfigError
        An option is outside its range, or so few samples can certify nothing.
    """

    sigma: float
    samples: int = 1000
    first: int = 100
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"sigma: expected a standard deviation in pixel units above 0, got {self.sigma!r}")
        for name in ("samples", "first"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name}: expected a number of noisy images of at least 1, got {value!r}")
        if not 0 < self.alpha <= 0.5:
            raise ConfigError(f"alpha: expected a probability above 0 and at most 0.5, got {self.alpha!r}")
        if self.radius(self.samples) <= 0:
            raise ConfigError(
                f"samples: {self.samples} can certify nothing with alpha={self.alpha:g}; take at least "
                f"{fewest_trials(self.alpha)}, or a larger alpha"
            )

    def radius(self, count: int) -> float:
        """The certified l2 radius if ``count`` of the samples had the same answer (their theorem 1); 0 if it is none.

        The probability of all other answers together is bounded by what is left.
        """
        share = lower_bound(count, self.samples, self.alpha)
        return self.sigma * NormalDist().inv_cdf(share) if share > 0.5 else 0.0

    @property
    def largest_radius(self) -> float:
        """The radius if all samples have the same answer."""
        return self.radius(self.samples)

    def vote(self, subject: Subject, pixels: Tensor, index: int, seed: int, batch_size: int) -> Vote:
        """Certify the image (C, H, W) at position ``index`` of its data, asking ``batch_size`` noisy copies at a time.

        The noise depends on ``seed`` and ``index`` only. A copy that gets no answer, or is rejected, counts for no
        class.
        """
        guess = self._answers(subject, pixels, "first", self.first, (index, seed), batch_size)
        chosen = guess[guess != NO_ANSWER]
        if not len(chosen):
            return Vote(NO_ANSWER, 0, 0.0)
        answer = int(chosen.bincount().argmax())
        answers = self._answers(subject, pixels, "samples", self.samples, (index, seed), batch_size)
        count = int((answers == answer).sum())
        radius = self.radius(count)
        return Vote(answer if radius > 0 else NO_ANSWER, count, radius)

    def _answers(
        self, subject: Subject, pixels: Tensor, part: str, count: int, place: tuple[int, int], batch_size: int
    ) -> Tensor:
        """The classes, (count,), of noisy copies of an image."""
        seed, found = mix_seed("smoothing", part, *place), []
        for start in range(0, count, batch_size):
            copies = range(start, min(start + batch_size, count))
            noise = SampleGenerator(seed, copies).normal(pixels.shape, pixels)
            noisy = (pixels + self.sigma * noise).clamp(0, 1)
            given = subject.ask(noisy, mix_seed(seed, "purifier"), copies)
            rejected = given.rejected
            found.append(given.answers if rejected is None else given.answers.masked_fill(rejected, NO_ANSWER))
        return torch.cat(found).cpu()
