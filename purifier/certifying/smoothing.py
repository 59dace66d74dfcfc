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
    asked: int
    """How many samples were taken."""
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
    radius
        Take no more samples of an image once this l2 norm is certified for it, or the samples say that it cannot be (a
        sequential test, as in Voracek 2024, "Treatment of statistical estimation problems in randomized smoothing for
        adversarial robustness"). Bounds are computed after a few numbers of samples, up to ``samples``, each at its
        share of ``alpha``, so that all hold together.

    Raises
    ------
    ConfigError
        An option is outside its range, or so few samples can certify nothing.
    """

    sigma: float
    samples: int = 1000
    first: int = 100
    alpha: float = 0.001
    radius: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.sigma, int | float) and 0 < self.sigma < math.inf):
            raise ConfigError(f"sigma: expected a standard deviation in pixel units above 0, got {self.sigma!r}")
        for name in ("samples", "first"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name}: expected a number of noisy images of at least 1, got {value!r}")
        if not (isinstance(self.alpha, int | float) and 0 < self.alpha <= 0.5):
            raise ConfigError(f"alpha: expected a probability above 0 and at most 0.5, got {self.alpha!r}")
        if self.largest_radius <= 0:
            raise ConfigError(
                f"samples: {self.samples} can certify nothing with alpha={self.alpha:g}; take at least "
                f"{fewest_trials(self.alpha)}, or a larger alpha"
            )
        if self.radius is not None and not (
            isinstance(self.radius, int | float) and 0 < self.radius < self.largest_radius
        ):
            raise ConfigError(
                f"radius: {self.samples} samples can certify l2 norms above 0 and below {self.largest_radius:.3g} with "
                f"sigma={self.sigma:g}, got {self.radius!r}; take more samples, or a larger sigma"
            )

    def certified(self, count: int, trials: int, alpha: float) -> float:
        """The l2 radius if ``count`` of ``trials`` samples had the same answer (their theorem 1); 0 if there is none.

        The probability of all other answers together is bounded by what is left.
        """
        share = lower_bound(count, trials, alpha)
        return self.sigma * NormalDist().inv_cdf(share) if share > 0.5 else 0.0

    @property
    def largest_radius(self) -> float:
        """The radius if all samples have the same answer."""
        return self.certified(self.samples, self.samples, self.alpha)

    @property
    def looks(self) -> list[int]:
        """After how many samples bounds are computed: all, and with ``radius`` a half, a quarter, ... of them.

        It is halved as long as samples that all agree can certify ``radius``.
        """
        found = [self.samples]
        if self.radius is not None:
            while self.certified(found[0] // 2, found[0] // 2, self.alpha / (len(found) + 1)) > self.radius:
                found.insert(0, found[0] // 2)
        return found

    def _is_hopeless(self, count: int, trials: int) -> bool:
        """Whether the probability of the answer is surely too small for ``radius``. No certificate depends on this."""
        assert self.radius is not None
        largest = 1 - lower_bound(trials - count, trials, self.alpha / len(self.looks))
        return largest < NormalDist().cdf(self.radius / self.sigma)

    def vote(self, subject: Subject, pixels: Tensor, index: int, seed: int, batch_size: int) -> Vote:
        """Certify the image (C, H, W) at position ``index`` of its data, asking ``batch_size`` noisy copies at a time.

        The noise depends on ``seed`` and ``index`` only. A copy that gets no answer, or is rejected, counts for no
        class.
        """
        guess = self._answers(subject, pixels, "first", range(self.first), (index, seed), batch_size)
        chosen = guess[guess != NO_ANSWER]
        if not len(chosen):
            return Vote(NO_ANSWER, 0, 0, 0.0)
        answer = int(chosen.bincount().argmax())
        count, asked, radius, looks = 0, 0, 0.0, self.looks
        for look in looks:
            answers = self._answers(subject, pixels, "samples", range(asked, look), (index, seed), batch_size)
            count, asked = count + int((answers == answer).sum()), look
            radius = max(radius, self.certified(count, asked, self.alpha / len(looks)))
            if self.radius is not None and (radius > self.radius or self._is_hopeless(count, asked)):
                break
        return Vote(answer if radius > 0 else NO_ANSWER, count, asked, radius)

    def _answers(
        self, subject: Subject, pixels: Tensor, part: str, numbers: range, place: tuple[int, int], batch_size: int
    ) -> Tensor:
        """The classes, (numbers,), of noisy copies of an image."""
        seed, found = mix_seed("smoothing", part, *place), []
        for start in range(0, len(numbers), batch_size):
            copies = numbers[start : start + batch_size]
            noise = SampleGenerator(seed, copies).normal(pixels.shape, pixels)
            noisy = (pixels + self.sigma * noise).clamp(0, 1)
            given = subject.ask(noisy, mix_seed(seed, "purifier"), copies)
            rejected = given.rejected
            found.append(given.answers if rejected is None else given.answers.masked_fill(rejected, NO_ANSWER))
        return torch.cat(found).cpu()
