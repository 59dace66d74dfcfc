"""Targets: what an attack cannot ask, and what it is told."""

from __future__ import annotations

import pytest
import torch
from target_helpers import PIXELS, Blind, Deaf, Detached, Noisy, Rounded, Scoring, Square, both, first_logit, target

from purifier.data.pixels import Preprocessing
from purifier.errors import AuditError, GradientError, PluginError


def test_a_score_without_gradient_and_a_route_without_one_are_errors(classifier):
    for route in ("exact", "bpda"):
        with pytest.raises(GradientError, match=r"Deaf.score\(\) has no gradient \(detach, no_grad\); make it"):
            target(classifier, Deaf, route).gradients_with_score(PIXELS, both)
    queries = target(classifier, Scoring, "none")
    with pytest.raises(GradientError, match="route none gives logits only"):
        queries.gradients_with_score(PIXELS, both)
    torch.testing.assert_close(queries.logits_with_score(PIXELS)[1], PIXELS.pow(3).sum((1, 2, 3)))


def test_fewer_images_without_select_are_an_error(classifier):
    with pytest.raises(AuditError, match=r"noise for 2 images, got a generator for 5; narrow the target with select"):
        target(classifier, Noisy, "exact")(PIXELS[:2])


def test_the_route_none_gives_logits_only(classifier):
    queries = target(classifier, Square, "none")
    leaf = PIXELS.clone().requires_grad_()
    assert not queries(leaf).requires_grad
    with pytest.raises(GradientError, match="route none gives logits only"):
        queries.gradient(PIXELS, first_logit)


@pytest.mark.parametrize("route", ["exact", "bpda"])
def test_a_classifier_without_gradients_has_no_white_box_route(route):
    with pytest.raises(GradientError, match=r"needs gradients of the classifier, but blind has none; use the torch"):
        target(Blind(Preprocessing()), Square, route)


def test_a_classifier_without_gradients_can_be_queried():
    for route in ("none", "oblivious"):
        asked = target(Blind(Preprocessing()), Square, route)
        assert asked(PIXELS).shape == (5, 3)
        with pytest.raises(GradientError):
            asked.gradient(PIXELS, first_logit)


def test_unknown_routes_are_errors(classifier):
    with pytest.raises(GradientError, match=r"Rounded has no exact gradient .* use the route bpda"):
        target(classifier, Rounded, "exact")
    with pytest.raises(GradientError, match="route must be one of exact, bpda, oblivious, none, got 'secret'"):
        target(classifier, Square, "secret")


def test_a_purifier_that_cuts_its_gradient_is_caught(classifier):
    with pytest.raises(GradientError, match="no gradient reaches the pixels along the route 'exact'"):
        target(classifier, Detached, "exact").gradient(PIXELS, first_logit)


def test_asking_with_0_images_is_an_error_that_says_so(classifier):
    none, asked = PIXELS[:0], target(classifier, Scoring, "exact", count=0)
    for ask in (
        asked,
        asked.logits,
        asked.logits_with_score,
        lambda pixels: asked.gradient(pixels, first_logit),
        lambda pixels: asked.gradients_with_score(pixels, both),
    ):
        with pytest.raises(PluginError, match="asked its target with 0 images.* return early where no image"):
            ask(none)
    assert asked.spent.queries == 0


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda logits: logits.mean(), r"\(\)"),
        (lambda logits: logits[:, :1], r"\(5, 1\)"),
        (lambda logits: logits, r"\(5, 3\)"),
        (lambda logits: 1.0, "float"),
    ],
)
def test_a_loss_that_is_not_one_number_per_image_is_an_error(classifier, loss, got):
    asked = target(classifier, Scoring, "exact")
    said = rf"one number per image, expected a tensor of shape \(5,\), got {got}; keep the images apart"
    with pytest.raises(PluginError, match=said):
        asked.gradient(PIXELS, loss)
    with pytest.raises(PluginError, match=said):
        asked.gradients_with_score(PIXELS, both, lambda logits, score: loss(logits))
