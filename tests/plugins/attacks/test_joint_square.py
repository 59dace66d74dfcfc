"""The query form of the joint attack, and attacks on guards that answer rejected images, against known optima."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detector_helpers import (
    CLASSIFIER,
    COUNT,
    LABELS,
    PIXELS,
    NoConfig,
    Noisy,
    Sloped,
    fooled,
    lowest_score,
    run,
    score,
)
from purifier.errors import ConfigError
from purifier.rejection.policy import Rejection

THRESHOLD = 0.0
FLAG = Rejection("flag", threshold=THRESHOLD)
SPEC = "joint-square:queries=2000"


class Own(Sloped):
    """Its own classifier says the opposite of the label for dark images, else the label."""

    def classify(self, pixels: Tensor) -> Tensor:
        dark = pixels.mean((1, 2, 3)) < 0.5
        return torch.log_softmax(CLASSIFIER(pixels) * (1 - 2 * dark.float())[:, None], 1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.2)])
def test_fools_classifier_and_detector_at_once_where_that_is_possible(norm, eps):
    found, target = run(SPEC, norm, eps=eps, route="none", rejection=FLAG)
    evades = fooled(found) & (score(found) <= THRESHOLD)
    optimum = lowest_score(norm, eps)
    possible = optimum <= THRESHOLD
    assert not (evades & ~possible).any() and evades.sum() >= 0.8 * possible.sum() > 10
    assert target.spent.gradients == 0 and target.spent.scores == target.spent.queries
    plain, _ = run("square:queries=2000", norm, eps=eps, route="none", rejection=FLAG)
    assert evades.sum() > (fooled(plain) & (score(plain) <= THRESHOLD)).sum()


def test_an_images_result_does_not_depend_on_its_batch():
    for filter_ in (Sloped, Noisy):
        whole, sevens = (
            run("joint-square:queries=60", filter_=filter_, route="none", batch=batch, rejection=FLAG)[0]
            for batch in (COUNT, 7)
        )
        assert ((whole - sevens).abs() < 1e-5).double().mean() > 0.99


def test_on_the_route_oblivious_it_is_square():
    found, target = run("joint-square:queries=60", route="oblivious", rejection=FLAG)
    assert torch.equal(found, run("square:queries=60", route="oblivious", rejection=FLAG)[0])
    assert target.spent.scores == 0


def test_needs_a_threshold():
    with pytest.raises(ConfigError, match="attack 'joint-square' needs a calibrated purifier"):
        run("joint-square:queries=60", route="none")


def given(pixels: Tensor, rejection: Rejection, purifier: Sloped) -> Tensor:
    return rejection.replace(CLASSIFIER(pixels), rejection.of(score(pixels)), purifier, pixels).argmax(1)


@pytest.mark.parametrize(("spec", "alone"), [("joint", "pgd"), ("joint-square:queries=1000", "square:queries=1000")])
@pytest.mark.parametrize(("on_reject", "abstain"), [("abstain", 1), ("reclassify", None)])
def test_any_wrong_answer_will_do_where_rejected_images_get_one(spec, alone, on_reject, abstain):
    """An image can be led across the boundary, or to be rejected and then answered wrongly."""
    rejection = Rejection(on_reject, abstain, score(PIXELS).max().item() + 1)
    purifier = Own(NoConfig())
    route = "exact" if spec == "joint" else "none"
    assert (given(PIXELS, rejection, purifier) == LABELS).all()
    found, plain = (run(one, filter_=Own, route=route, eps=0.02, rejection=rejection)[0] for one in (spec, alone))
    wrong, before = (given(images, rejection, purifier) != LABELS for images in (found, plain))
    assert wrong.sum() >= before.sum() > 0
    if on_reject == "reclassify":
        assert wrong.sum() > before.sum() and (wrong & (score(found) > rejection.threshold)).any()
