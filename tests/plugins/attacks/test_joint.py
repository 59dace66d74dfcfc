"""The joint attack: against known optima, against attacks on the classifier alone, its options."""

from __future__ import annotations

import pytest
import torch

from detector_helpers import (
    CLASSIFIER,
    COUNT,
    EPS,
    LABELS,
    PIXELS,
    Deaf,
    Fails,
    NoConfig,
    Noisy,
    Sloped,
    fooled,
    lowest_score,
    run,
    score,
)
from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError, GradientError


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
