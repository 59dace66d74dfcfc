"""The noise of random purifiers as an input of exported files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

import purifier
from onnx_models import FLOAT, WEIGHT, model_of
from purifier.contracts.purifier import Purifier
from purifier.errors import ClassifierError, ConfigError
from purifier.guards.exporting import export
from purifier.guards.guard import guard
from purifier.seeding import SampleGenerator
from scoring_purifiers import Bright, BrightConfig, Random, calibrated, dark_and_bright

PIXELS, REJECTED = dark_and_bright()[:, :, 10:18, 10:18], np.array([False, True, False, True, True, False])
SIZE = BrightConfig((1, 8, 8))


def classifier(name: str = "logits") -> ModelProto:
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], [name])]
    inputs, outputs = [("x", FLOAT, ["N", 1, 8, 8])], [(name, FLOAT, ["N", 5])]
    return model_of(nodes, inputs=inputs, outputs=outputs, initializers={"weight": WEIGHT[:64]})


class Net(nn.Module):
    """The same in torch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.from_numpy(WEIGHT[:64])


def plain(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, **more: Any) -> dict[str, np.ndarray]:
    values = session.run(None, {"x": PIXELS.numpy(), **more})
    return {output.name: value for output, value in zip(session.get_outputs(), values, strict=True)}


def drawn(which: Purifier) -> Tensor:
    noise = which.draw(PIXELS, SampleGenerator(9, range(len(PIXELS))))
    assert noise is not None
    return noise


@pytest.mark.parametrize(
    ("spec", "onnx_file"), [("noisy", False), ("vae:image_shape=1x8x8,channels=4,latent=3,sample=true", True)]
)
def test_noise_can_be_an_input(spec: str, onnx_file: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    which = Random(SIZE).eval() if spec == "noisy" else purifier.load(spec)
    path, noise = tmp_path / "guarded.onnx", drawn(which)
    report = export(guard(classifier() if onnx_file else Net(), which), path, noise="input")
    session = plain(path)
    assert "takes its draw() as the input purifier_noise" in report.notes[0]
    assert session.get_modelmeta().custom_metadata_map["purifier.noise"] == "the purifier's draw()"
    batch = "N" if onnx_file else "batch"
    images, second = session.get_inputs()
    assert (images.name, images.shape[0]) == ("x", batch)
    assert (second.name, second.type) == ("purifier_noise", "tensor(float)")
    assert second.shape == [batch, *noise.shape[1:]]
    found = run(session, purifier_noise=noise.numpy())
    with torch.no_grad():
        expected = Net()(which.purify(PIXELS, noise))
        mean = Net()(which.purify(PIXELS))
    logits = found["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert not np.allclose(logits, mean, atol=1e-3)


def test_noise_and_rejection_go_together(tmp_path: Path) -> None:
    which, path = calibrated(Random(SIZE)), tmp_path / "guarded.onnx"
    noise = drawn(which)
    export(guard(classifier(), which, on_reject="abstain", score=True), path, noise="input")
    found = run(plain(path), purifier_noise=noise.numpy())
    np.testing.assert_array_equal(np.isnan(found["logits"]).all(1), REJECTED)
    assert list(found)[1:] == ["purifier_score", "purifier_rejected"]


def test_noise_of_images_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["y"])]
    free = model_of(nodes, inputs=[("x", FLOAT, ["N", 3, "H", "W"])], outputs=[("y", FLOAT, ["N", 3])])
    which = Random(BrightConfig(None)).eval()
    export(guard(free, which), path, noise="input")
    pixels = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    noise = which.draw(pixels, SampleGenerator(0, range(2)))
    (found,) = plain(path).run(None, {"x": pixels.numpy(), "purifier_noise": noise.numpy()})
    np.testing.assert_allclose(found, which.purify(pixels, noise).detach().mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize("onnx_file", [False, True])
def test_noise_as_input_needs_a_random_purifier(onnx_file: bool, tmp_path: Path) -> None:
    guarded = guard(classifier() if onnx_file else Net(), Bright(SIZE))
    with pytest.raises(ConfigError, match="noise='input': Bright draws no noise, its result is always the same"):
        export(guarded, tmp_path / "guarded.onnx", noise="input")
    with pytest.raises(ConfigError, match="noise: expected 'mean' or 'input', got 'none'"):
        export(guarded, tmp_path / "guarded.onnx", noise="none")
    assert not list(tmp_path.iterdir())


def test_noise_as_input_must_be_floats(tmp_path: Path) -> None:
    class Coin(Random):
        def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
            return super().draw(pixels, generator) > 0

    with pytest.raises(ConfigError, match="expected float noise, got torch.bool from Coin"):
        export(guard(Net(), Coin(SIZE)), tmp_path / "guarded.onnx", noise="input")


def test_a_name_in_use_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="'purifier_noise'; rename it, or guard it without noise"):
        export(guard(classifier("purifier_noise"), Random(SIZE)), tmp_path / "guarded.onnx", noise="input")
