"""Errors of guard() and of guarded modules, and edge cases they accept."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import purifier
from purifier.errors import ConfigError, PixelError, PluginError

VAE = "vae:image_shape=1x28x28,channels=4,latent=8"


class Net(nn.Module):
    """A linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((2, 1, 28, 28), float("nan")), r"images: expected values in \[0, 1\], got \[nan, nan\]"),
        (torch.rand(2, 1, 28, 28) * 255, r"scale=255"),
        (torch.rand(2, 3, 28, 28), r"expected images \(N, 1, 28, 28\), got \(2, 3, 28, 28\)"),
        (torch.rand(1, 28, 28), r"got \(1, 28, 28\)"),
        (
            torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
            r"got torch.uint8; .* say so: preprocessing=purifier.Preprocessing\(scale=255, dtype='uint8'\)",
        ),
        (torch.zeros(2, 1, 28, 28, dtype=torch.int64), "expected float32 images, got torch.int64; convert them$"),
        ("file.png", "expected an image tensor, got str"),
    ],
)
def test_impossible_images_are_errors(net: Net, image: object, message: str) -> None:
    with pytest.raises(PixelError, match=message):
        purifier.guard(net, VAE)(image)


def test_the_range_check_can_be_left_out(net: Net) -> None:
    guarded = purifier.guard(net, "identity", check=False)
    assert torch.equal(guarded(torch.full((1, 1, 28, 28), 3.0)), net(torch.ones(1, 1, 28, 28)))


@dataclass(frozen=True)
class NoConfig:
    pass


class Halving(purifier.Purifier):
    Config, gradient = NoConfig, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels[::2]


def test_a_purifier_that_loses_images_is_named(net: Net, images) -> None:
    with pytest.raises(PluginError, match=r"must return images \(64, 1, 28, 28\), got \(32, 1, 28, 28\)"):
        purifier.guard(net, Halving(NoConfig()))(images[0])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # deprecated, and still in production
def test_traced_classifiers(net: Net, images) -> None:
    traced = torch.jit.trace(net, images[0])
    assert torch.equal(purifier.guard(traced, "identity")(images[0]), net(images[0]))


def test_an_empty_batch_gives_an_empty_result(net: Net) -> None:
    assert purifier.guard(net, VAE)(torch.zeros(0, 1, 28, 28)).shape == (0, 10)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, "identity"), {}, "model: expected a torch.nn.Module"),
        ((nn.Flatten(), 3), {}, "purifier: expected a Purifier"),
        ((nn.Flatten(), "identity"), {"input": 4}, "takes input, got position 4"),
        ((nn.Flatten(), "identity"), {"input": "image"}, "takes input, got 'image'"),
        (
            (nn.Flatten(), "identity"),
            {"providers": []},
            "providers: this option is for an ONNX classifier, got",
        ),
        ((nn.Flatten(), "identity"), {"preprocessing": 255}, "preprocessing: expected"),
    ],
)
def test_impossible_guards_are_errors(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        purifier.guard(*arguments, **options)


def test_guarding_a_guard_is_an_error(net: Net) -> None:
    with pytest.raises(ConfigError, match="already guarded"):
        purifier.guard(purifier.guard(net, "identity"), "identity")
