"""Classifiers, purifiers and options that adversarial training cannot work with: each an error that says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import purifier
from nets import trained
from purifier.contracts.purifier import purifiers
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError, TrainingError
from purifier.training.loop import train
from training_helpers import OfBytes, Recorder

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"channels": 4, "latent": 8, "spatial": True}


class Probabilities(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :10].softmax(1)


class Restless(nn.Module):
    """A classifier that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained("net")
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        return self.net(pixels)


class Rounds(Recorder):
    """Has to declare that autograd is not the truth."""

    gradient = "surrogate"

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels * self.weight


def test_a_surrogate_gradient_is_not_trained_through(tmp_path: Path) -> None:
    purifiers.register("rounds", Rounds)
    try:
        with pytest.raises(ConfigError, match="'rounds' declares a surrogate gradient.* use the recipe denoise"):
            train(
                "rounds",
                "fashion-mnist:train:40",
                tmp_path / "p.safetensors",
                recipe="robust",
                classifier=trained("net"),
            )
    finally:
        purifiers.unregister("rounds")


def test_a_classifier_that_changes_itself_is_an_error(tmp_path: Path) -> None:
    restless = Restless()
    with pytest.raises(
        TrainingError, match="torch Restless changes its weights or buffers when called in evaluation mode"
    ):
        train("vae", "fashion-mnist:train:40", tmp_path / "p.safetensors", recipe="robust", classifier=restless)
    assert restless.calls == 0


class Cut(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.detach().flatten(1)[:, :10]


class Coarse(nn.Module):
    """Autograd goes through it and brings zeros."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels * 7).round() / 7


class Unsure(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.flatten(1)[:, :10] - 1).sqrt()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"classifier": None}, ConfigError, "the recipe robust needs the classifier"),
        ({"recipe": "elbo"}, ConfigError, "the recipe elbo takes no classifier; leave it out"),
        ({"classifier": Probabilities()}, ConfigError, "expected logits, got probabilities .*remove its softmax"),
        (
            {"classifier": nn.Sequential(nn.Flatten(), nn.Linear(784, 3))},
            TrainingError,
            "labels of .* from 0 to 9, exp",
        ),
        ({"classifier": nn.Linear(3, 10)}, TrainingError, "torch Linear fails on images"),
        ({"classifier": Cut()}, ConfigError, "has none; use the torch .* or use the recipe denoise with att"),
        ({"classifier": nn.Sequential(Coarse(), trained("net"))}, ConfigError, "has none; .*no_grad or rounding"),
        ({"classifier": Unsure()}, TrainingError, "Unsure returns NaN or infinity for an image of"),
        ({"recipe": "elbo", "classifier": None, "weights": "w"}, ConfigError, "the recipe elbo takes no classifier"),
        ({"weights": "w.safetensors"}, ConfigError, "weights are only for a MODEL spec"),
        ({"classifier": 8}, ConfigError, "classifier: expected a torch.nn.Module, an onnx.ModelProto or a MODEL spec"),
        ({"preprocessing": "grey"}, purifier.PurifierError, "preprocessing"),
        ({"recipe": "robust:loss=trades,clean=1"}, ConfigError, "clean is an option of loss=ce"),
        ({"recipe": "robust:beta=1"}, ConfigError, "beta is an option of loss=trades"),
        (
            {"classifier": OfBytes(), "preprocessing": Preprocessing(dtype="uint8", scale=255)},
            ConfigError,
            "use the recipe denoise with attacks that need no gradients: denoise:attacks=square, or denoise:attacks=t",
        ),
        ({"recipe": "robust:steps=0"}, ConfigError, "robust: steps must be at least 1"),
        ({"recipe": "robust:eps=2"}, ConfigError, "eps must be at most 1 for linf"),
        ({"recipe": "robust:ramp=2"}, ConfigError, r"ramp must be a share of training in \[0, 1\], got 2"),
        ({"recipe": "robust:distillation=1.5"}, ConfigError, r"distillation must be a share in \[0, 1\], got 1.5"),
        ({"recipe": "robust:kl=nan"}, ConfigError, "kl must be a number of at least 0, got nan"),
        ({"recipe": "robust:norm=l1"}, ConfigError, "option 'norm': expected one of linf, l2, got 'l1'"),
        ({"ema": 1.0}, ConfigError, r"ema: expected a decay in \[0, 1\)"),
        ({"clip": -1}, ConfigError, "clip: expected a number of at least 0"),
        ({"schedule": "steep"}, ConfigError, "'schedule': expected one of constant, cosine, got 'steep'"),
        ({"precision": "float16"}, ConfigError, "'precision': expected one of float32, bfloat16, auto"),
        ({"augment": "mixup"}, ConfigError, "'augment': expected one of none, shift, flip"),
    ],
)
def test_errors(options: dict[str, object], error: type[Exception], says: str, tmp_path: Path) -> None:
    given = {"recipe": "robust", "classifier": trained("net"), "epochs": 1, "config": SMALL, **options}
    with pytest.raises(error, match=says):
        train("vae", "fashion-mnist:train:64", tmp_path / "p.safetensors", **given)
    assert not list(tmp_path.glob("p.safetensors"))
