"""What a purifier is trained on: images without labels, image folders, what users of torch have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from nets import trained
from purifier.contracts.purifier import Purifier
from purifier.data.given import Data
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import ConfigError
from purifier.training.loop import train
from purifier.training.state import log_path

PIXELS, LABELS = load_data("demo:24").batch(range(24))
SMALL = {"channels": 2, "latent": 4}


def weights(purifier: Purifier) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in purifier.state_dict().values()])


def trained_on(data: Data, out: Path, recipe: str = "elbo", plugin: str = "vae", **config: object) -> Purifier:
    classifier = None if recipe == "elbo" else trained("net")
    options = {"epochs": 1, "batch_size": 8, "recipe": recipe, "classifier": classifier}
    return train(plugin, data, out, config={**SMALL, **config}, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for place, image in enumerate(PIXELS):
        Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).save(folder / f"{place:02}.png")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return folder


def test_images_without_labels_are_enough_for_elbo(tmp_path: Path, photos: Path) -> None:
    with_labels = trained_on((PIXELS, LABELS), tmp_path / "a.safetensors")
    unlabelled = load_data(f"folder:{photos}", skip_bad=True)
    for place, data in enumerate([PIXELS, TensorDataset(PIXELS), unlabelled]):
        found = trained_on(data, tmp_path / f"{place}.safetensors")
        torch.testing.assert_close(weights(found), weights(with_labels))
    header = json.loads(log_path(tmp_path / "2.safetensors").read_text().splitlines()[0])["settings"]
    assert header["skipped"] == 1 and "labels" not in header


@pytest.mark.parametrize("recipe", ["robust:steps=1,distillation=0", "robust:steps=1", "denoise:attacks=fgsm"])
def test_labels_are_the_classifiers_own_answers(tmp_path: Path, recipe: str) -> None:
    answers = trained("net")(PIXELS).argmax(1)
    assert not torch.equal(answers, LABELS)
    expected = trained_on(ImageData("mine", PIXELS, answers), tmp_path / "a.safetensors", recipe)
    found = trained_on(PIXELS, tmp_path / "b.safetensors", recipe)
    assert torch.equal(weights(found), weights(expected))
    header = json.loads(log_path(tmp_path / "b.safetensors").read_text().splitlines()[0])["settings"]
    assert header["labels"] == "answers of the classifier"


def test_a_purifier_that_learns_from_labels_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Gmvae learns from labels, but images has none; give labels"):
        trained_on(PIXELS, tmp_path / "a.safetensors", plugin="gmvae", components=2, labelled=True)
