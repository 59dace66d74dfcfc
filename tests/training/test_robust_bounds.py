"""Adversarial training with a share of interval bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import purifier
from purifier.errors import ConfigError
from purifier.plugins.purifiers.vae import Vae, VaeConfig
from purifier.training.recipes import build_recipe
from training_helpers import batch_of

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG: dict[str, Any] = {"channels": 4, "latent": 8, "encoder": "bounded"}


def made() -> Vae:
    torch.manual_seed(0)
    return Vae(VaeConfig((1, 28, 28), **CONFIG))


def test_the_recipe_shares_the_weight_between_attack_and_bounds() -> None:
    data, recipe = purifier.load_data("demo:24"), "robust:eps=0.1,ramp=0.2,distillation=0"
    found = {}
    for done in (0.1, 0.5):
        for bounds in (0.0, 0.125, 0.25):
            batch = batch_of(data, range(24), done=done)
            found[done, bounds] = build_recipe(f"{recipe},bounds={bounds}").step(made().train(), batch)
    for done, grown in ((0.1, 0.5), (0.5, 1.0)):
        plain, small, large = (found[done, bounds] for bounds in (0.0, 0.125, 0.25))
        assert "bounds" not in plain and large.keys() - plain.keys() == {"bounds", "scores"}
        for name in ("adversarial", "scores"):
            torch.testing.assert_close(large[name] * (1 - 0.125 * grown), small[name] * (1 - 0.25 * grown))
        torch.testing.assert_close(large["bounds"], 2 * small["bounds"])
        torch.testing.assert_close(large["reconstruction"], small["reconstruction"])
    assert found[0.5, 0.25]["bounds"] > found[0.1, 0.25]["bounds"]


def test_images_are_attacked_as_the_purifier_answers_and_do_not_count_in_its_statistics() -> None:
    model = made().train()
    encode, modes = model.encode, []

    def recorded(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        modes.append(model.encoder.training)
        return encode(pixels)

    model.encode = recorded  # type: ignore[method-assign]  # to see how it is asked
    batch = batch_of(purifier.load_data("demo:24"), range(24), done=1.0)
    build_recipe("robust:eps=0.1,bounds=0.25,steps=3").step(model, batch)
    assert modes == [False, False, False, True] and model.training


@pytest.mark.parametrize(
    ("plugin", "config", "recipe", "says"),
    [
        ("vae", {"channels": 4}, "robust:bounds=0.1", "Vae has no bounds: its encoder is free; set encoder=bounded"),
        ("vae", CONFIG, "robust:bounds=1", "bounds must be a weight of at least 0 and below 1, got 1"),
        ("vae", CONFIG, "robust:bounds=0.1,loss=trades", "bounds goes with loss=ce and norm=linf only"),
        ("vae", CONFIG, "robust:bounds=0.1,norm=l2,eps=1", "bounds goes with loss=ce and norm=linf only"),
        (
            "vae",
            {**CONFIG, "classes": 4},
            "robust:bounds=0.1",
            "has labels from 0 to 9, but Vae classes=4; set as many",
        ),
    ],
)
def test_bounds_that_cannot_be_trained_with_are_errors(
    plugin: str, config: dict[str, Any], recipe: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        purifier.train(plugin, "demo:40", tmp_path / "p.safetensors", config=config, recipe=recipe, classifier="demo")
    assert not (tmp_path / "p.safetensors").exists()
