"""The encoder with bounds: what its bounds are, what they teach, and where it does not go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

import purifier
from purifier.errors import ConfigError
from purifier.plugins.purifiers.vae import Vae, VaeConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG: dict[str, Any] = {"channels": 4, "latent": 8, "encoder": "bounded"}


def made(seed: int = 0, shape: tuple[int, int, int] = (1, 28, 28), **options: Any) -> Vae:
    torch.manual_seed(seed)
    return Vae(VaeConfig(shape, **{**CONFIG, **options}))


def test_without_a_budget_the_bounds_are_the_scores() -> None:
    pixels, labels = purifier.load_data("demo:16").batch(range(16))
    for shape in ((1, 28, 28), (3, 27, 30)):
        model = made(shape=shape).train()
        images = torch.rand((16, *shape), generator=torch.Generator().manual_seed(1)) if shape[0] == 3 else pixels
        scores, margins, intervals = model.training_bounds(images, labels, 0.0)
        torch.testing.assert_close(margins, scores.gather(1, labels[:, None]) - scores, atol=1e-4, rtol=1e-4)
        before = margins
        for eps in (0.01, 0.1):
            _, margins, intervals = model.training_bounds(images, labels, eps)
            own = F.one_hot(labels, 10).bool()
            assert (margins <= before + 1e-5)[~own].all() and (margins < before)[~own].any()
            before = margins
        assert len(intervals) == 4  # the image, two maps, and the linear layer


def test_scores_are_those_of_the_points() -> None:
    pixels, labels = purifier.load_data("demo:16").batch(range(16))
    model, moved = made().train(), (pixels + 0.05).clamp(0, 1)
    own, others = (model.training_bounds(pixels, labels, 0.1, points).scores for points in (None, moved))
    assert not torch.allclose(own, others)
    assert torch.equal(model.training_bounds(pixels, labels, 0.0, pixels).scores, own)
    torch.testing.assert_close(model.training_bounds(moved, labels, 0.0).scores, others)


def test_gradients_reach_all_weights_of_the_encoder() -> None:
    pixels, labels = purifier.load_data("demo:16").batch(range(16))
    model = made().train()
    model.purify(pixels).sum().backward()
    reached = {name for name, weight in model.encoder.named_parameters() if weight.grad is not None}
    assert {name for name, _ in model.encoder.named_parameters()} - reached == {"scores.weight", "scores.bias"}
    model.zero_grad()
    F.cross_entropy(-model.training_bounds(pixels, labels, 0.1).margins, labels).backward()
    reached = {name for name, weight in model.encoder.named_parameters() if weight.grad is not None}
    assert {name for name, _ in model.encoder.named_parameters()} - reached == {"last.weight", "last.bias"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_is_trained_saved_and_exported_like_any_other(precision: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"recipe": "robust:eps=0.05,bounds=0.1", "classifier": "demo", "batch_size": 16}
    settings["precision"] = precision
    model = purifier.train("vae", "demo:64", tmp_path / "p.safetensors", config=CONFIG, epochs=2, **settings)
    pixels = purifier.load_data("demo:8").batch(range(8))[0]
    alone = torch.cat([model.purify(image[None]) for image in pixels])
    torch.testing.assert_close(model.purify(pixels), alone, atol=1e-5, rtol=1e-5)
    again = purifier.load(tmp_path / "p.safetensors")
    assert torch.equal(again.purify(pixels), model.purify(pixels))
    guarded = purifier.guard("demo", again)
    session = onnxruntime.InferenceSession(purifier.export(guarded, tmp_path / "g.onnx").path)
    (logits,) = session.run(None, {"images": pixels.numpy()})
    np.testing.assert_allclose(logits, guarded(pixels).detach().numpy(), atol=1e-4)
    mixture = purifier.train("gmvae", "demo:64", tmp_path / "m.safetensors", config=CONFIG, epochs=1, **settings)
    assert mixture.purify(pixels).isfinite().all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("encoder=bounded,spatial=true,blocks=2", "encoder=bounded goes without spatial, blocks; leave out one or"),
        ("encoder=bounded,norm=batch", "goes without norm"),
        ("encoder=bounded,spatial=true,context=true", "goes without spatial, context"),
        ("encoder=bounded,stem=4", "goes without stem"),
        ("encoder=bounded,classes=1", "classes must be at least 2, got 1"),
        ("classes=4", "classes is for encoder=bounded; give that too"),
        ("encoder=bounded,channels=60000", "these options give .* weights, expected at most 1e.09"),
        ("encoder=loose", "expected one of free, bounded, got 'loose'"),
    ],
)
def test_impossible_options_are_errors(options: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        purifier.load(f"vae:image_shape=1x28x28,{options}")
