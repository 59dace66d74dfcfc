"""Randomised smoothing against what is known: binomial bounds, and a linear model, whose radius has a closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from purifier.auditing.subject import Given
from purifier.certifying.binomial import fewest_trials, lower_bound
from purifier.certifying.smoothing import NO_ANSWER, Smoothing
from purifier.errors import ConfigError


class Linear:
    """Class 1 where the first pixel is above ``edge``, else class 0; rejects images whose last pixel is below 0.2."""

    marks = False

    def __init__(self, edge: float = 0.5, *, rejects: bool = False, silent: bool = False) -> None:
        self.edge, self.rejects, self.silent, self.asked = edge, rejects, silent, list[Tensor]()

    def ask(self, pixels: Tensor, seed: int, indices: Sequence[int]) -> Given:
        self.asked.append(pixels)
        value = pixels.flatten(1)[:, 0] - self.edge
        logits = torch.stack([-value, value], 1)
        if self.silent:
            logits = torch.full((len(pixels), 1), torch.nan)
        return Given(logits, pixels.flatten(1)[:, -1] < 0.2 if self.rejects else None)


def grey(first: float) -> Tensor:
    image = torch.full((1, 2, 2), 0.5)
    image[0, 0, 0] = first
    return image


@pytest.mark.parametrize(
    ("count", "trials", "alpha", "expected"),
    [
        (1000, 1000, 0.001, 0.001 ** (1 / 1000)),  # P(all) = p^n
        (1, 50, 0.05, 1 - 0.95 ** (1 / 50)),  # P(at least one) = 1 - (1 - p)^n
        (95, 100, 0.025, 0.8871650888945),  # scipy.stats.beta.ppf(0.025, 95, 6)
        (8, 10, 0.025, 0.4439045376923),
        (0, 10, 0.05, 0.0),
    ],
)
def test_the_lower_bound_is_that_of_clopper_and_pearson(count, trials, alpha, expected) -> None:
    found = lower_bound(count, trials, alpha)
    assert found <= expected and found == pytest.approx(expected, abs=1e-6)


def test_the_fewest_trials_are_enough_and_no_fewer_are() -> None:
    for alpha in (0.001, 0.01, 0.3):
        least = fewest_trials(alpha)
        assert lower_bound(least, least, alpha) > 0.5 >= lower_bound(least - 1, least - 1, alpha)


def test_the_bound_holds_as_often_as_it_says() -> None:
    torch.manual_seed(0)
    share, trials, alpha, times = 0.8, 60, 0.1, 2000
    counts = torch.distributions.Binomial(trials, torch.tensor(share)).sample((times,)).int().tolist()
    wrong = sum(lower_bound(count, trials, alpha) > share for count in counts)
    assert 0 < wrong <= alpha * times + 3 * math.sqrt(alpha * (1 - alpha) * times)


@pytest.mark.parametrize("distance", [0.0, 0.05, 0.1, 0.2])
def test_the_radius_of_a_linear_model_is_its_distance_to_the_edge(distance: float) -> None:
    smoothing, pixels = Smoothing(0.1, samples=20_000, first=50), grey(0.5 + distance)
    vote = smoothing.vote(Linear(), pixels, 0, 0, 5000)
    assert vote.radius <= distance  # the truth; nothing larger is proven
    if distance:
        assert vote.answer == 1 and vote.radius > distance - 0.01
    else:
        assert vote.answer == NO_ANSWER and vote.radius == 0
    share = NormalDist().cdf(distance / 0.1)
    assert vote.count / 20_000 == pytest.approx(share, abs=0.015)


def test_sampling_stops_once_the_radius_is_certified() -> None:
    whole, early = Smoothing(0.1, samples=2000, first=20), Smoothing(0.1, samples=2000, first=20, radius=0.05)
    assert whole.looks == [2000] and early.looks == [31, 62, 125, 250, 500, 1000, 2000]
    easy, hard, undecided = (early.vote(Linear(), grey(0.5 + distance), 0, 0, 500) for distance in (0.3, 0.06, 0.05))
    assert easy.asked == 31 and easy.count == 31 and 0.05 < easy.radius < whole.largest_radius
    assert 31 < hard.asked <= 2000 and hard.radius <= 0.06
    assert undecided.asked == 2000 and 0 < undecided.radius <= 0.05 and undecided.answer == 1
    hopeless = early.vote(Linear(), grey(0.51), 0, 0, 500)
    assert hopeless.asked < 2000 and hopeless.radius <= 0.01
    model = Linear()
    early.vote(model, grey(0.8), 0, 0, 500)
    assert len(torch.cat(model.asked)) == 20 + 31


def test_looking_often_certifies_too_much_no_oftener_than_alpha() -> None:
    distance, times = 0.05, 600
    smoothing = Smoothing(0.1, samples=400, first=20, alpha=0.1, radius=distance)
    assert len(smoothing.looks) > 3
    votes = [smoothing.vote(Linear(), grey(0.5 + distance), index, 0, 400) for index in range(times)]
    wrong = sum(vote.radius > distance for vote in votes)
    assert 0 < wrong <= 0.1 * times + 3 * math.sqrt(0.1 * 0.9 * times)


def test_noise_is_clamped_depends_on_the_image_and_not_on_the_batch() -> None:
    smoothing, models = Smoothing(0.4, samples=40, first=10), [Linear() for _ in range(4)]
    places = ((0, 0, 7), (0, 0, 50), (1, 0, 50), (0, 1, 50))
    votes = [smoothing.vote(model, grey(0.6), *place) for model, place in zip(models, places, strict=True)]
    asked = [torch.cat(model.asked) for model in models]
    assert torch.equal(asked[0], asked[1]) and votes[0] == votes[1]
    assert not torch.equal(asked[1], asked[2]) and not torch.equal(asked[1], asked[3])
    assert len(asked[0]) == 50 and all(images.min() == 0 and images.max() == 1 for images in asked)
    assert len(asked[0].unique(dim=0)) == 50  # choosing the answer and bounding it use different copies


def test_copies_that_are_rejected_count_for_no_class() -> None:
    smoothing = Smoothing(0.1, samples=1000, first=20)
    image = grey(0.9)
    image[0, 1, 1] = 0.3  # one in six copies is rejected
    vote = smoothing.vote(Linear(rejects=True), image, 0, 0, 500)
    assert vote.answer == 1 and vote.count / 1000 == pytest.approx(NormalDist().cdf(1.0), abs=0.04)
    image[0, 1, 1] = 0.1
    rejected = smoothing.vote(Linear(rejects=True), image, 0, 0, 500)
    assert (rejected.answer, rejected.radius) == (NO_ANSWER, 0.0)
    silent = smoothing.vote(Linear(silent=True), image, 0, 0, 500)
    assert (silent.answer, silent.count, silent.radius) == (NO_ANSWER, 0, 0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sigma": 0}, "sigma: expected a standard deviation in pixel units above 0, got 0"),
        ({"sigma": float("nan")}, "sigma: expected"),
        ({"sigma": "x"}, "sigma: expected a standard deviation in pixel units above 0, got 'x'"),
        ({"sigma": 0.1, "alpha": "x"}, "alpha: expected .* got 'x'"),
        ({"sigma": 0.1, "radius": "x"}, "radius: .* got 'x'"),
        ({"sigma": 0.1, "samples": 0}, "samples: expected a number of noisy images of at least 1, got 0"),
        ({"sigma": 0.1, "first": 2.5}, "first: expected a number of noisy images of at least 1, got 2.5"),
        ({"sigma": 0.1, "alpha": 0}, "alpha: expected a probability above 0 and at most 0.5, got 0"),
        (
            {"sigma": 0.1, "samples": 5},
            r"5 can certify nothing with alpha=0.001; take at least 10, or a larger alpha",
        ),
        (
            {"sigma": 0.1, "samples": 100, "radius": 0.3},
            r"radius: 100 samples can certify l2 norms above 0 and below 0.15 with sigma=0.1, got 0.3; take",
        ),
        ({"sigma": 0.1, "radius": 0}, "radius: 1000 samples can certify .* got 0;"),
    ],
)
def test_options_that_can_certify_nothing_are_errors(options, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Smoothing(**options)
