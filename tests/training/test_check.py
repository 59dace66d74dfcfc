"""The check after an epoch: how many images, how often, and posteriors that have collapsed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from purifier.contracts.purifier import Purifier
from purifier.plugins.purifiers.vae import Vae, VaeConfig
from purifier.training.check import checks_after, informative, is_checked, watched
from purifier.training.loop import train
from purifier.training.progress import Progress
from training_helpers import NoConfig, Recorder


@pytest.mark.parametrize(
    ("images", "count", "checked"),
    [(60_000, 250, 12), (50_000, 250, 12), (20_000, 100, 12), (6_400, 64, 6), (800, 64, 1), (20, 20, 1)],
)
def test_about_one_image_is_watched_for_200_trained_on(images: int, count: int, checked: int) -> None:
    assert watched(images) == count
    epochs = [epoch for epoch in range(1, 13) if is_checked(epoch, 12, images)]
    assert len(epochs) == checked and epochs[-1] == 12
    assert [checks_after(epoch, 12, images) for epoch in range(1, 13)] == [
        sum(later > epoch for later in epochs) for epoch in range(1, 13)
    ]


@dataclass(frozen=True)
class FourConfig:
    scale: float = 1.0


class Four(Purifier):
    """Four latent dimensions whose informativeness is known: the mean is the first four pixels times a scale."""

    Config = FourConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = pixels.flatten(1)[:, :4] * self.config.scale
        return mean, torch.full_like(mean, 2 * torch.tensor(self.config.scale).log().item())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_dimension_is_informative_if_its_mean_varies_against_its_own_spread(scale: float) -> None:
    # Variances over the images of 0, 0.0025, 0.02 and 0.25 of the posterior's own; the threshold is 0.01.
    columns = torch.tensor([[0.5, 0.45, 0.5 - 0.02**0.5, 0.0], [0.5, 0.55, 0.5 + 0.02**0.5, 1.0]])
    pixels = columns.repeat(8, 1).view(16, 1, 2, 2)
    assert informative(Four(FourConfig(scale)), pixels.split(4)) == (2, 4)


def test_a_purifier_without_a_posterior_has_no_informative_dimensions() -> None:
    class Other(Recorder):
        def encode(self, pixels: Tensor) -> Tensor:
            return pixels

    pixels = torch.rand(4, 1, 4, 4)
    assert informative(Recorder(NoConfig()), [pixels]) is None
    assert informative(Other(NoConfig()), [pixels]) is None


def test_a_posterior_that_equals_the_prior_has_collapsed() -> None:
    vae = Vae(VaeConfig((1, 28, 28), channels=2, latent=4)).eval()
    pixels = torch.rand(32, 1, 28, 28)
    vae.encoder.layers[-1].weight.data.zero_()
    vae.encoder.layers[-1].bias.data.zero_()
    assert vae.kl(*vae.encode(pixels)).abs().max() == 0
    assert informative(vae, [pixels]) == (0, 4)


def test_a_collapse_of_the_posterior_is_named_in_log_and_progress(tmp_path: Path) -> None:
    grey = torch.full((40, 1, 28, 28), 0.5)  # there is nothing to encode
    seen: list[Progress] = []
    train(
        "vae",
        (grey, torch.zeros(40, dtype=torch.int64)),
        tmp_path / "p.safetensors",
        config={"channels": 2, "latent": 4},
        epochs=8,
        batch_size=1,
        progress=seen.append,
    )
    entry = json.loads((tmp_path / "p.log.jsonl").read_text().splitlines()[-1])
    assert entry["figures"]["informative_latents"] == 0
    (warning,) = entry["warnings"]
    assert warning.startswith("posterior collapse: 0 of 4 latent dimensions depend on the image")
    assert [now.warning for now in seen if now.warning] == [warning]


def test_a_posterior_that_is_still_to_learn_has_not_collapsed(tmp_path: Path) -> None:
    train("vae", "demo:40", tmp_path / "p.safetensors", config={"channels": 2, "latent": 4}, epochs=1)
    entry = json.loads((tmp_path / "p.log.jsonl").read_text().splitlines()[-1])
    assert "informative_latents" in entry["figures"] and "warnings" not in entry
