"""The purifier ``certified``: what it returns, its surrogate and score, its options, as ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_certified import random_certified, small_certified

import purifier
from nets import trained
from purifier.contracts.bounded import Bounded, BoundTrained
from purifier.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_returns_the_image_of_the_highest_component(images) -> None:
    pixels, _ = images
    made = small_certified()
    assert isinstance(made, Bounded) and isinstance(made, BoundTrained)
    best = made.scores(pixels).argmax(1)
    assert torch.equal(made.purify(pixels), made.outputs()[best]) and len(best.unique()) > 5
    mixed = made.surrogate(pixels)
    weights = made.scores(pixels).softmax(1)
    assert torch.allclose(mixed, (weights @ made.outputs().flatten(1)).view_as(pixels), atol=1e-6)


def test_a_negative_score_is_a_certificate(images) -> None:
    pixels, _ = images
    made = small_certified()
    score, eps = made.score(pixels), torch.full((len(pixels),), made.config.eps)
    reachable = made.reachable(pixels, "linf", eps)
    assert 10 < int((score < 0).sum()) < 64
    # In float32 the score allows for more rounding, so it may miss a certificate but never claims one.
    assert (reachable[score < 0].sum(1) == 1).all()
    assert ((reachable.sum(1) == 1) != (score < 0)).sum() <= 1
    assert (made.reachable(pixels, "linf", 0 * eps).sum(1) == 1).all()
    assert made.reachable(pixels, "linf", eps + 1).all()


def test_coarse_factors_reach_more(images) -> None:
    pixels, _ = images
    made, eps = small_certified(), torch.full((64,), 0.02)
    counts = [int(made.reachable(pixels, "linf", eps, factors).sum()) for factors in (0.0, 2.0**-10, 2.0**-8)]
    assert counts[0] < counts[1] < counts[2]


def test_what_runs_is_what_is_bounded_after_training_loading_and_copying(tmp_path: Path, images) -> None:
    pixels, _ = images
    made = random_certified((1, 28, 28), channels=4, hidden=8)
    loaded = purifier.load(purifier.save(made, tmp_path / "certified.safetensors"))
    for layer, other in zip((*made.maps, made.hidden), (*loaded.maps, loaded.hidden), strict=True):
        assert torch.equal(layer.run_weight, other.run_weight) and torch.equal(layer.run_bias, other.run_bias)
    assert torch.equal(made.scores(pixels), loaded.scores(pixels))
    with torch.no_grad():
        made.hidden.scale.mul_(2)
    before = made.scores(pixels)
    assert torch.equal(before, loaded.scores(pixels))  # in evaluation mode it stays what it was
    assert not torch.equal(made.train().scores(pixels), before)


def test_the_exported_guard_answers_alike_and_its_score_is_the_margin(tmp_path: Path, images) -> None:
    pixels, _ = images
    guarded = purifier.guard(trained("net"), small_certified(), score=True)
    path = purifier.export(guarded, tmp_path / "guarded.onnx").path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    values = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    found = dict(zip((one.name for one in session.get_outputs()), values, strict=True))
    with torch.no_grad():
        logits, score = guarded(pixels)
    assert np.array_equal(found["logits"].argmax(1), logits.argmax(1).numpy())
    assert np.allclose(found["purifier_score"], score.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("classes=1", "certified: expected 2 or more classes, got 1"),
        ("eps=0", "certified: eps must be above 0 in pixel units, got 0"),
        ("norm=l1", "norm"),
        ("eps=2", "eps must be at most 1 for linf"),
        ("depth=0", "must be positive"),
        ("channels=100000,depth=3", "lower channels, hidden or depth"),
        ("colour=red", "colour"),
    ],
)
def test_options_that_cannot_be_are_errors(options: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        purifier.load(f"certified:image_shape=1x28x28,{options}")


def test_autocast_changes_nothing(images) -> None:
    pixels, _ = images
    made = small_certified()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made.scores(pixels)
    assert torch.equal(found, made.scores(pixels))


@pytest.mark.parametrize("recipe", ["elbo", "denoise:attacks=fgsm", "robust:eps=0.1"])
def test_other_recipes_are_errors(recipe: str, tmp_path: Path) -> None:
    classifier = None if recipe == "elbo" else trained("net")
    with pytest.raises(purifier.PurifierError, match="certified"):
        purifier.train(
            "certified", "demo:8", tmp_path / "out.safetensors", recipe=recipe, classifier=classifier, epochs=1
        )
    assert not list(tmp_path.glob("*.safetensors"))
