"""Recipe ``certified``: the images of components, the loss over time, what it needs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_certified import SMALL, random_certified, small_certified
from torch import nn
from torch.nn import functional as F

import purifier
from nets import trained
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError, TrainingError
from purifier.seeding import SampleGenerator
from purifier.training.certified import Certified
from purifier.training.component_images import component_images
from purifier.training.recipe import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Class 0 for dark images, 1 for bright ones; class 2 for those whose first pixel is white."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, first = images.flatten(1).mean(1), images.flatten(1)[:, 0]
        return torch.stack([0.5 - mean, mean - 0.5, 10 * (first > 0.99).float()], 1)


def classifier(module: nn.Module) -> TorchPixelClassifier:
    return TorchPixelClassifier(module, Preprocessing())


def squares() -> ImageData:
    """2x2 images: eight dark ones, eight bright ones, and eight grey ones, of which two have a white first pixel."""
    levels = torch.arange(8).view(8, 1, 1, 1) * 0.01
    dark, bright, grey = (torch.ones(8, 1, 2, 2) * (level + levels) for level in (0.1, 0.8, 0.4))
    grey[:2, 0, 0, 0] = 1.0
    return ImageData("squares", torch.cat([dark, bright, grey]), torch.arange(3).repeat_interleave(8))


def test_a_component_becomes_the_most_typical_of_the_images_that_are_surely_right() -> None:
    data = squares()
    found = component_images(data, classifier(Brightness()), 3, CPU, answers=False)
    # A quarter of eight, the two darkest and the two brightest; and the better of the two that have a white pixel.
    assert float(found[0].mean()) == pytest.approx(0.105, abs=0.006) and found[0].std() == 0
    assert float(found[1].mean()) == pytest.approx(0.865, abs=0.006)
    assert torch.equal(found[2], data.batch([16])[0][0]) or torch.equal(found[2], data.batch([17])[0][0])
    by_answers = component_images(data, classifier(Brightness()), 3, CPU, answers=True)
    assert torch.equal(by_answers[1], found[1])


def test_classes_without_an_image_are_errors() -> None:
    data = squares()
    with pytest.raises(TrainingError, match="answers no image of class 3 with that class, of 0 among 24"):
        component_images(data, classifier(nn.Sequential(Brightness(), nn.ZeroPad1d((0, 1)))), 4, CPU, answers=False)
    with pytest.raises(TrainingError, match="expected classes from 0 to 1, got 2; the purifier needs as many classes"):
        component_images(data, classifier(Brightness()), 2, CPU, answers=False)
    data.labels = data.labels.roll(8)
    with pytest.raises(TrainingError, match="no image of class 0 with that class, of 8 .*certified:answers=true"):
        component_images(data, classifier(Brightness()), 3, CPU, answers=False)


def batch_of(done: float, count: int = 32) -> Batch:
    pixels, labels = load_data(f"demo:{count}").batch(range(count))
    streams = SampleGenerator(0, range(count))
    return Batch(pixels, labels, streams, streams, range(count), classifier(trained("net")), done)


def test_the_budget_grows_and_the_clean_weight_falls() -> None:
    recipe = Certified(clean=0.25, warmup=0.1, ramp=0.4, excess=1.5, regularisation=0.0)
    seen: list[float] = []
    model = random_certified((1, 28, 28), channels=4, hidden=8, eps=0.2).train()
    bounds = model.training_bounds

    def recorded(pixels: torch.Tensor, labels: torch.Tensor, eps: float, points: torch.Tensor) -> Any:
        seen.append(eps)
        assert points is pixels
        return bounds(pixels, labels, eps)

    model.training_bounds = recorded  # type: ignore[method-assign]  # to see what it is asked
    weights, worst = [], 0.0
    for done in (0.0, 0.1, 0.3, 0.5, 0.9):
        batch = batch_of(done)
        terms = recipe.step(model, batch)
        found = bounds(batch.pixels, batch.labels, seen[-1])
        plain = F.cross_entropy(found.scores, batch.labels).item()
        worst = F.cross_entropy(-found.margins, batch.labels).item()
        weights.append(terms["clean"].item() / plain)
        assert terms["bounds"].item() == pytest.approx((1 - weights[-1]) * worst, rel=1e-3, abs=1e-6)
    assert seen == pytest.approx([0, 0, 0.15, 0.3, 0.3])
    assert weights == pytest.approx([1, 1, 0.625, 0.25, 0.25], rel=1e-4)
    assert worst >= plain


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_rest_of_the_loss_may_be_on_attacked_images(norm: str) -> None:
    model = random_certified((1, 28, 28), channels=4, hidden=8, norm=norm, eps=0.2).train()
    bounds, scores, given, modes = model.training_bounds, model.scores, [], []

    def recorded(pixels: torch.Tensor, labels: torch.Tensor, eps: float, points: torch.Tensor) -> Any:
        given.append((points - pixels).flatten(1))
        return bounds(pixels, labels, eps, points)

    def asked(pixels: torch.Tensor) -> torch.Tensor:
        modes.append(model.training)
        return scores(pixels)

    model.training_bounds, model.scores = recorded, asked  # type: ignore[method-assign]  # to see what they are asked
    batch = batch_of(0.3)
    losses = [
        Certified(clean=0.75, warmup=0.1, ramp=0.4, steps=steps, regularisation=0).step(model, batch)
        for steps in (0, 1, 4)
    ]
    assert [sorted(terms) for terms in losses] == [["bounds", "clean"], ["attacked", "bounds"], ["attacked", "bounds"]]
    clean, one, four = (terms.get("attacked", terms.get("clean")) for terms in losses)
    assert clean is not None and one is not None and four is not None and four > one > clean
    assert modes == [False] * 5 and model.training
    sizes = [change.norm(dim=1, p=2 if norm == "l2" else torch.inf) for change in given]
    assert not sizes[0].any() and all(0.05 < size.max() <= 0.1 + 1e-6 for size in sizes[1:])  # half the budget


def test_it_learns_answers_that_are_certified(tmp_path: Path) -> None:
    made = small_certified()
    figures = made.provenance["metrics"]
    assert figures["right_clean"] >= figures["certified"] > 0.4
    answers = trained("net")(made.outputs()).argmax(1)
    assert answers.tolist() == list(range(10))
    untrained = random_certified((1, 28, 28), **SMALL)
    pixels, labels = load_data("demo:100").batch(range(100))
    eps, own = torch.full((100,), 0.02), F.one_hot(labels, 10).bool()
    sure = [(one.reachable(pixels, "linf", eps) == own).all(1).float().mean() for one in (made, untrained)]
    assert sure[0] > 0.4 > sure[1]


def test_a_run_that_was_stopped_reaches_the_same_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "recipe": "certified:answers=true", "classifier": trained("net"), "config": SMALL, "batch_size": 20, "seed": 3
    }  # fmt: skip
    whole = purifier.train("certified", "demo:120", tmp_path / "whole.safetensors", epochs=2, **settings)

    def stop(progress: purifier.Progress) -> None:
        if progress.epoch == 2 and progress.images:
            raise KeyboardInterrupt

    out = tmp_path / "stopped.safetensors"
    with pytest.raises(KeyboardInterrupt):
        purifier.train("certified", "demo:120", out, epochs=2, progress=stop, **settings)
    resumed = purifier.train("certified", "demo:120", out, epochs=2, resume=True, **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    log = [json.loads(line) for line in (tmp_path / "whole.log.jsonl").read_text().splitlines()]
    assert set(log[1]["terms"]) == {"clean", "bounds", "tightness", "balance"}
    assert {"right_clean", "certified"} <= set(log[-1]["figures"])


def test_images_without_labels_and_a_classifier_without_gradients_will_do(tmp_path: Path) -> None:
    guarded = purifier.guard(trained("net"), "identity")
    onnx = purifier.export(guarded, tmp_path / "net.onnx", image_shape=(1, 28, 28)).path
    pixels, _ = load_data("demo:100").batch(range(100))
    made = purifier.train(
        "certified", pixels, tmp_path / "out.safetensors", recipe="certified", classifier=onnx, epochs=1, config=SMALL
    )
    assert torch.equal(trained("net")(made.outputs()).argmax(1), torch.arange(10))  # type: ignore[operator]  # a module's buffer


@pytest.mark.parametrize(
    "options", [{"clean": 1.5}, {"ramp": -0.1}, {"warmup": 2}, {"steps": -1}, {"excess": 0}, {"regularisation": -1}]
)
def test_options_out_of_range_are_errors(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"certified: {next(iter(options))} must be"):
        Certified(**options)  # type: ignore[arg-type]  # of several types


def test_a_budget_within_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"recipe": "certified:excess=2", "classifier": trained("net"), "epochs": 1}
    with pytest.raises(ConfigError, match="certified: eps=0.6 cannot be trained for"):
        purifier.train("certified", "demo:20", tmp_path / "out.safetensors", config={**SMALL, "eps": 0.3}, **settings)


def test_a_purifier_without_bounds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the recipe certified needs a purifier with bounds.*Vae has none"):
        purifier.train("vae", "demo:8", tmp_path / "out.safetensors", recipe="certified", classifier=trained("net"))
    assert not list(tmp_path.iterdir())


def test_l2_is_trained_for_as_it_is_certified(tmp_path: Path) -> None:
    model = random_certified((1, 28, 28), channels=4, hidden=8, norm="l2", eps=0.3).train()
    batch = batch_of(1.0)
    ball = model.training_bounds(batch.pixels, batch.labels, 0.3)
    model.config = dataclasses.replace(model.config, norm="linf")
    box = model.training_bounds(batch.pixels, batch.labels, 0.3)
    assert (ball.margins > box.margins).any()
    assert torch.allclose(ball.scores, box.scores, atol=1e-4)
