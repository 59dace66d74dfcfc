"""Batch normalisation in the encoder: it learns from batches, and purifies each image by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import purifier
from nets import trained

CONFIG: dict[str, Any] = {"channels": 4, "latent": 4, "spatial": True, "blocks": 2, "norm": "batch"}
ROBUST: dict[str, Any] = {"recipe": "robust:eps=0.1", "classifier": "demo", "batch_size": 16, "overwrite": True}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> purifier.Purifier:
    out = tmp_path_factory.mktemp("norm") / "p.safetensors"
    return purifier.train("vae", "demo:64", out, config=CONFIG, epochs=2, **ROBUST)


def test_what_an_image_becomes_does_not_depend_on_its_batch(learned: purifier.Purifier) -> None:
    pixels = purifier.load_data("demo:8").batch(range(8))[0]
    alone = torch.cat([learned.purify(image[None]) for image in pixels])
    torch.testing.assert_close(learned.purify(pixels), alone, atol=1e-5, rtol=1e-5)
    again = purifier.load(learned.provenance["spec"])
    assert torch.equal(again.purify(pixels), learned.purify(pixels))
    means = [buffer for name, buffer in learned.named_buffers() if name.endswith("running_mean")]
    assert means and all(mean.any() for mean in means)


def test_a_run_that_is_stopped_ends_with_the_same_statistics(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(now: Any) -> None:
        if now.epoch == 2:
            raise Stopped

    whole = purifier.train("vae", "demo:64", tmp_path / "whole.safetensors", config=CONFIG, epochs=2, **ROBUST)
    out = tmp_path / "parts.safetensors"
    with pytest.raises(Stopped):
        purifier.train("vae", "demo:64", out, config=CONFIG, epochs=2, progress=stop, **ROBUST)
    parts = purifier.train(
        "vae", "demo:64", out, config=CONFIG, epochs=2, **{**ROBUST, "resume": True, "overwrite": False}
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


def test_blocks_start_as_nothing() -> None:
    torch.manual_seed(0)
    plugin = purifier.purifiers.get("vae")
    made = plugin(plugin.Config(image_shape=(1, 28, 28), **CONFIG)).eval()
    features = torch.rand(2, 16, 7, 7)
    blocks = [layer for layer in made.encoder.layers if type(layer).__name__ == "Preactivated"]
    assert len(blocks) == 3  # one after the first halving, two after the last
    assert torch.equal(blocks[-1](features), features)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("options", [{}, {"depth": 3, "blocks": 3}, {"blocks": 0}, {"stem": 2}])
def test_the_number_of_weights_is_known_before(norm: str, options: dict[str, Any]) -> None:
    plugin = purifier.purifiers.get("vae")
    config = plugin.Config(image_shape=(3, 32, 32), **{**CONFIG, "channels": 32, "norm": norm, **options})
    actual = sum(weight.numel() for weight in plugin(config).parameters())
    assert config._weights() == pytest.approx(actual, rel=0.03)


def test_it_exports_and_audits_like_any_other(learned: purifier.Purifier, tmp_path: Path) -> None:
    guarded = purifier.guard(trained("net"), learned)
    assert max(purifier.export(guarded, tmp_path / "g.onnx").max_error.values()) < 1e-4
    report = purifier.audit(guarded, "demo:20", attacks=["pgd:steps=3"], probes=6)
    assert not {flag.name for flag in report.flags} & {"batch-norm", "batch-dependent", "gradient-wrong"}


def test_a_mixture_learns_behind_it(tmp_path: Path) -> None:
    config = {**CONFIG, "components": 3}
    made = purifier.train("gmvae", "demo:64", tmp_path / "g.safetensors", config=config, epochs=3, batch_size=16)
    assert made.purify(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)
