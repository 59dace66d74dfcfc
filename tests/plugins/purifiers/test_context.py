"""The option ``context``: what one part of an image shows reaches all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

import purifier
from nets import trained
from purifier.errors import ConfigError

SMALL: dict[str, Any] = {"channels": 4, "latent": 3, "spatial": True, "context": True}


def made(plugin: str = "vae", **options: Any) -> purifier.Purifier:
    torch.manual_seed(0)
    found: Any = purifier.purifiers.get(plugin)
    purifier_of_map: purifier.Purifier = found(found.Config(image_shape=(3, 32, 32), **{**SMALL, **options})).eval()
    return purifier_of_map


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("context", [False, True])
def test_a_corner_is_told_to_the_whole_image(context: bool, norm: str) -> None:
    pixels = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    other = pixels.clone()
    other[..., :2, :2] = 1 - other[..., :2, :2]
    one = made(context=context, norm=norm, blocks=1).double()
    change = (one.purify(other) - one.purify(pixels)).abs()
    assert change[..., :8, :8].max() > 1e-9
    assert (change[..., 28:, 28:].max() > 1e-9) == context


def test_what_is_told_is_a_linear_function_of_the_mean() -> None:
    encoder: Any = made().encoder
    last = encoder.layers[-1]
    features = torch.rand(2, 16, 8, 5)
    given = last(features) - torch.nn.functional.conv2d(features, last.weight, last.bias)
    expected = torch.einsum("oi,nihw->no", last.context.weight, features) / 40
    torch.testing.assert_close(given, expected[:, :, None, None].expand_as(given), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"blocks": 2}, {"blocks": 2, "norm": "batch"}, {"stem": 2}])
def test_the_number_of_weights_is_known_before(options: dict[str, Any]) -> None:
    one: Any = made(channels=32, latent=16, **options)
    actual = sum(weight.numel() for weight in one.parameters())
    assert one.config._weights() == pytest.approx(actual, rel=0.03)


@pytest.mark.parametrize("plugin", ["vae", "gmvae"])
def test_it_learns_saves_and_exports(plugin: str, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    options: dict[str, Any] = {"recipe": "robust:eps=0.1", "classifier": "demo", "batch_size": 16, "epochs": 1}
    learned = purifier.train(plugin, "demo:32", out, config=SMALL, **options)
    pixels = purifier.load_data("demo:8").batch(range(8))[0]
    assert torch.equal(purifier.load(str(out)).purify(pixels), learned.purify(pixels))
    classifier = trained("net")
    guarded = purifier.guard(classifier, learned)
    assert max(purifier.export(guarded, tmp_path / "g.onnx").max_error.values()) < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    (logits, *_) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), guarded(pixels).detach(), atol=1e-4, rtol=1e-4)


def test_a_vector_needs_no_context() -> None:
    with pytest.raises(ConfigError, match="context is for a latent map; set spatial=true, or leave context out"):
        purifier.load("vae:image_shape=3x32x32,context=true")
