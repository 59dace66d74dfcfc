"""How the shipped robust purifier is built: each stage, and all of them on a few images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_certified import random_certified

import purifier
from nets import trained
from purifier.assets import build, robust
from purifier.contracts.checkpoint import SHIPPED
from purifier.data.loading import load_data

pytestmark = pytest.mark.usefixtures("one_thread")


def narrow() -> Any:
    return random_certified((1, 28, 28), channels=6, hidden=256).eval()


def test_the_latent_begins_with_the_scores() -> None:
    old, pixels = narrow(), load_data("demo:20").batch(range(20))[0]
    made = robust.with_decoder(old).eval()
    torch.testing.assert_close(made.encode(pixels)[0][:, :10], robust.SCORES * old.scores(pixels))


def test_a_fitted_decoder_shows_the_classifier_more_and_leaves_the_encoder_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(robust, "BATCH_SIZE", 30)
    data, classifier = load_data("demo:300"), trained("net")
    made = robust.with_decoder(narrow()).eval()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    pixels, labels = data.batch(range(300))

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(classifier(made.purify(pixels)), labels))

    first = loss()
    for _ in range(5):
        robust.fit_decoder(made, data, classifier)
    assert loss() < 0.9 * first and all(weight.requires_grad for weight in made.parameters())
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "encoder"}
    assert {name for name in changed if name.startswith("encoder")} == {"encoder.last.weight", "encoder.last.bias"}


def test_all_stages_end_in_one_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALONE", "TOGETHER"):
        monkeypatch.setattr(robust, name, {**getattr(robust, name), "epochs": 1, "batch_size": 20})
    first, out = tmp_path / "first.safetensors", tmp_path / "robust.safetensors"
    purifier.save(narrow(), first)
    robust.train_robust(out, first, load_data("demo:40"), trained("net"))
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {first.name, out.name}
    made = purifier.load(out)
    assert all(weight.dtype == torch.float32 for weight in made.parameters())
    assert out.stat().st_size < 2.2 * sum(weight.numel() for weight in made.parameters()) + 20_000
    assert made.provenance["recipe"] == robust.TOGETHER["recipe"]


def test_a_build_that_was_stopped_goes_on_without_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "TOGETHER", {**robust.TOGETHER, "epochs": 1, "batch_size": 20})
    never = {"recipe": "certified", "epochs": -1}  # an error if it were trained
    monkeypatch.setattr(build, "CERTIFIED", never)
    monkeypatch.setattr(robust, "ALONE", never)
    out = tmp_path / SHIPPED["demo"]
    purifier.save(narrow(), tmp_path / "fashion-first.safetensors")
    purifier.save(narrow(), out.with_stem(f"{out.stem}-alone"))
    build.build_bounded(["robust"], tmp_path, load_data("demo:40"))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [out.name]
