"""The joint attack: against known optima, against attacks on the classifier alone, its options."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import purifier
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError, GradientError
from purifier.seeding import SampleGenerator
from purifier.vocabulary import Route

COUNT = 40
WEIGHTS = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
PIXELS = 0.4 + 0.2 * torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(2))
EPS = {"linf": 0.05, "l2": 0.25}


@dataclass(frozen=True)
class NoConfig:
    pass


class Sloped(purifier.Purifier):
    """Purifies nothing; its score is linear, so the lowest score is known."""

    Config, gradient = NoConfig, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else (pixels + 0.02 * noise).clamp(0, 1)

    def score(self, pixels: Tensor) -> Tensor:
        return 1000 * ((pixels - 0.5) * self.slope()).flatten(1).sum(1)

    @staticmethod
    def slope() -> Tensor:
        """Partly opposed to the classifier: both aims pull on the same pixels."""
        return 0.5 * WEIGHTS[0] + WEIGHTS[1]


class Noisy(Sloped):
    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)


class Deaf(Sloped):
    def score(self, pixels: Tensor) -> Tensor:
        return super().score(pixels.detach())


class Fails(Sloped):
    """Its score is NaN for dark images."""

    def score(self, pixels: Tensor) -> Tensor:
        return torch.where(pixels.mean((1, 2, 3)) < 0.5, torch.nan, super().score(pixels))


class TwoClasses(nn.Module):
    """Linear: class 1 where w . (x - 0.5) > 0."""

    def forward(self, pixels: Tensor) -> Tensor:
        side = ((pixels - 0.5) * WEIGHTS[0]).flatten(1).sum(1)
        return torch.stack([-side, side], 1)


CLASSIFIER = TorchPixelClassifier(TwoClasses().eval(), Preprocessing())
LABELS = CLASSIFIER(PIXELS).argmax(1)


def run(
    spec: str,
    norm: str = "linf",
    *,
    filter_: type[purifier.Purifier] = Sloped,
    route: Route = "exact",
    seed: int = 0,
    batch: int = COUNT,
    labels: Tensor = LABELS,
    eps: float | None = None,
    eot: int = 1,
) -> tuple[Tensor, Target]:
    threat, found = Threat(norm, EPS[norm] if eps is None else eps), []
    for start in range(0, COUNT, batch):
        indices = range(start, min(start + batch, COUNT))
        target = Target(CLASSIFIER, filter_(NoConfig()), route, SampleGenerator(seed + 1, indices), eot=eot)
        rows = slice(indices.start, indices.stop)
        generator = SampleGenerator(seed, indices)
        found.append(read_attack(spec).attack.perturb(target, PIXELS[rows], labels[rows], threat, generator))
    return torch.cat(found), target


def score(pixels: Tensor) -> Tensor:
    return Sloped(NoConfig()).score(pixels)


def fooled(pixels: Tensor) -> Tensor:
    return CLASSIFIER(pixels).argmax(1) != LABELS


def lowest_score(norm: str, eps: float) -> Tensor:
    """The lowest score of an image misclassified within the budget, (N,); NaN where none can be."""
    weight, slope = (part.flatten().double().numpy() for part in (WEIGHTS[0], Sloped.slope()))
    answers = []
    for image, label, clean in zip(PIXELS.flatten(1).double().numpy(), LABELS.tolist(), score(PIXELS), strict=True):
        away = weight * (1 - 2 * label)
        needed = -away @ (image - 0.5)
        if norm == "linf":
            solved = linprog(slope, A_ub=-away[None], b_ub=[-needed], bounds=(-eps, eps))
            answers.append(clean.item() + 1000 * solved.fun if solved.status == 0 else np.nan)
            continue
        # Along the score's slope, and if that does not cross, along the boundary: the rest of the budget lies in it.
        length = np.linalg.norm(away)
        across, free = needed / length, -eps * slope / np.linalg.norm(slope)
        if away @ free < needed:
            inside = slope - (slope @ away) / length**2 * away
            rest = np.sqrt(max(0.0, eps**2 - across**2))
            free = across * away / length - rest * inside / np.linalg.norm(inside)
        answers.append(clean.item() + 1000 * slope @ free if across < eps else np.nan)
    return torch.tensor(answers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("norm", "eps", "count"), [("linf", 0.01, 19), ("linf", 0.04, COUNT), ("l2", 0.05, 19), ("l2", 0.2, COUNT)]
)
def test_finds_the_lowest_score_of_a_misclassified_image(norm, eps, count):
    optimum = lowest_score(norm, eps)
    possible = ~optimum.isnan()
    assert possible.sum() == count
    found, _ = run("joint:confidence=0", norm, eps=eps)
    plain, _ = run("pgd", norm, eps=eps)
    assert torch.equal(fooled(found), possible) and torch.equal(fooled(plain), possible)
    reach = ((score(plain) - score(found)) / (score(plain) - optimum))[possible]
    assert reach.min() > 0.95 and reach.max() < 1.001


def test_an_image_that_starts_misclassified_only_loses_score():
    found, _ = run("joint:steps=20", labels=1 - LABELS)
    assert not fooled(found).any()
    assert (score(found) < score(PIXELS) - 1).all()
    least = score(PIXELS) - 1000 * EPS["linf"] * Sloped.slope().abs().sum()
    assert (score(found) >= least - 0.1).all()


def test_the_confidence_is_kept():
    sure, _ = run("joint:confidence=0.4,scale=raw")
    bare, _ = run("joint:confidence=0,scale=raw")
    margins = [2 * (CLASSIFIER(found)[:, 1] * (1 - 2 * LABELS)) for found in (sure, bare)]
    both = fooled(sure) & fooled(bare)
    assert margins[0][both].median() > 2 * margins[1][both].median()
    assert score(sure)[both].mean() > score(bare)[both].mean()


def test_on_the_route_oblivious_no_score_is_used():
    found, target = run("joint:steps=10", route="oblivious")
    assert target.spent.scores == 0 and target.spent.gradients == 10 * COUNT
    # It goes on to the edge of the budget, as pgd does there.
    plain, _ = run("pgd:steps=10", route="oblivious")
    torch.testing.assert_close(CLASSIFIER(found), CLASSIFIER(plain), atol=0.02, rtol=0)


def test_follows_bpda_too():
    torch.testing.assert_close(run("joint:steps=10", route="bpda")[0], run("joint:steps=10")[0])


@pytest.mark.parametrize("filter_", [Sloped, Noisy])
def test_an_images_result_does_not_depend_on_its_batch(filter_):
    whole, sevens = (run("joint:steps=8", filter_=filter_, batch=batch)[0] for batch in (COUNT, 7))
    assert ((whole - sevens).abs() < 1e-5).double().mean() > 0.999


def test_under_a_random_purifier_it_fools_most_draws():
    spec = "joint:steps=40,confidence=1"
    found, target = run(spec, filter_=Noisy, eot=4, eps=0.1)
    assert target.random(PIXELS)
    wrong = []
    for seed in range(5):
        noise = torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(seed))
        wrong.append(fooled(Noisy(NoConfig()).purify(found, noise)))
    plain, _ = run("pgd:steps=40", filter_=Noisy, eot=4, eps=0.1)
    assert torch.stack(wrong).double().mean() > 0.8
    assert score(found).mean() < score(plain).mean() - 100


def test_more_restarts_never_hurt():
    one, three = (run(f"joint:steps=4,restarts={count}")[0] for count in (1, 3))
    assert (fooled(three) | ~fooled(one)).all()
    assert (score(three) <= score(one) + 1e-3)[fooled(one)].all()


def test_a_nan_score_does_not_count_as_low():
    found, _ = run("joint", filter_=Fails, eps=0.15)
    assert found.isfinite().all()
    bright = fooled(found) & (PIXELS.mean((1, 2, 3)) > 0.52)
    assert bright.any() and Fails(NoConfig()).score(found)[bright].isfinite().all()


def test_a_score_without_gradient_is_an_error():
    with pytest.raises(GradientError, match=r"Deaf.score\(\) has no gradient .* make it differentiable"):
        run("joint", filter_=Deaf)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps=0", "attack 'joint': steps and restarts must be at least 1, got 0 and 1"),
        ("restarts=0", "got 100 and 0"),
        ("step_size=-1", "attack 'joint': step_size is a fraction of eps and must be positive, got -1"),
        ("confidence=-0.5", "attack 'joint': confidence must be a finite number >= 0, got -0.5"),
        ("loss=hinge", "attack 'joint': loss must be one of ce, dlr, margin, targeted, got 'hinge'"),
    ],
)
def test_impossible_options_are_errors(options, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(f"joint:{options}")
