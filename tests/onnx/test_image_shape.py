"""A guard's graph takes the images that classifier and purifier take, and the runtime refuses others."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor
from torch.nn import functional as F

import purifier
from onnx_models import FLOAT, model_of
from purifier.contracts.purifier import Purifier
from purifier.errors import ConfigError, PixelError
from purifier.onnx.runtime import CPU


def means(shape: list[int | str], *, channels_last: bool = False) -> ModelProto:
    """The mean of each channel as logits, for images of any size."""
    nodes = [helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2])] if channels_last else []
    nodes += [
        helper.make_node("GlobalAveragePool", ["planes" if channels_last else "images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    return model_of(nodes, inputs=[("images", FLOAT, shape)], outputs=[("logits", FLOAT, ["N", "K"])])


@functools.cache
def small_vae() -> Purifier:
    torch.manual_seed(0)
    return purifier.load("vae:image_shape=3x8x8,channels=4,latent=2").eval()


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def plain(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=[CPU])


def test_the_purifiers_size_becomes_the_inputs(tmp_path: Path) -> None:
    guarded = purifier.guard(means(["N", 3, "H", "W"]), small_vae(), providers=[CPU])
    purifier.export(guarded, tmp_path / "guarded.onnx")
    session = plain(tmp_path / "guarded.onnx")
    assert session.get_inputs()[0].shape == ["N", 3, 8, 8]
    assert session.run(None, {"images": images(5, 3, 8, 8)})[0].shape == (5, 3)
    with pytest.raises(Exception, match=r"invalid dimensions for input: images"):
        session.run(None, {"images": images(1, 3, 16, 16)})


def test_channels_last_with_free_height_and_width_behind_blur(tmp_path: Path) -> None:
    guarded = purifier.guard(means(["N", "H", "W", 3], channels_last=True), "blur", providers=[CPU])
    purifier.export(guarded, tmp_path / "guarded.onnx")
    for session in (guarded, plain(tmp_path / "guarded.onnx")):
        for height, width in ((9, 13), (20, 8)):
            given = images(2, height, width, 3)
            purified = purifier.load("blur").purify(torch.from_numpy(given).permute(0, 3, 1, 2))
            found = session.run(None, {"images": given})[0]
            np.testing.assert_allclose(found, purified.mean((2, 3)), atol=1e-6)


def test_free_channels_need_an_image_shape(tmp_path: Path) -> None:
    model = means(["N", "C", "H", "W"])
    with pytest.raises(ConfigError, match=r"how many channels its images have; give image_shape=\(C, H, W\) \(--image"):
        purifier.guard(model, "blur")
    guarded = purifier.guard(model, "blur", image_shape=(3, 9, 11), providers=[CPU])
    purifier.export(guarded, tmp_path / "guarded.onnx")
    assert plain(tmp_path / "guarded.onnx").get_inputs()[0].shape == ["N", 3, 9, 11]
    with pytest.raises(PixelError, match=r"expected images \(N, 3, 9, 11\), got \(2, 3, 11, 9\)"):
        guarded.run(None, {"images": images(2, 3, 11, 9)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((3, 9, 9), r"image_shape is \(3, 9, 9\), but the classifier takes \(3, 8, 8\).*leave image_shape out"),
        ((3, 8), r"image_shape: expected \(C, H, W\), three positive integers, got \(3, 8\)"),
        ((3, 8, 0), "three positive integers"),
        ("3x8x8", "three positive integers"),
    ],
)
def test_an_image_shape_that_does_not_fit_is_an_error(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        purifier.guard(means(["N", 3, 8, 8]), "blur", image_shape=given)  # type: ignore[call-overload]


def test_an_image_shape_is_not_for_torch() -> None:
    with pytest.raises(ConfigError, match="image_shape: this option is for an ONNX classifier"):
        purifier.guard(torch.nn.Flatten(), "blur", image_shape=(3, 8, 8))


class Halving(Purifier):
    """Works at half the size, so odd sizes come back smaller: 201x161 as 200x160."""

    Config = type(purifier.load("identity").config)
    gradient = "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="nearest")


def test_a_size_that_a_purifier_would_change_is_refused_by_the_runtime(tmp_path: Path) -> None:
    guarded = purifier.guard(means(["N", 3, "H", "W"]), Halving(Halving.Config()), providers=[CPU])
    purifier.export(guarded, tmp_path / "guarded.onnx")
    for session in (guarded, plain(tmp_path / "guarded.onnx")):
        given = images(2, 3, 20, 16)
        np.testing.assert_allclose(session.run(None, {"images": given})[0], given.mean((2, 3)), atol=1e-6)
        with pytest.raises(Exception, match="purified_images_must_keep_their_size"):
            session.run(None, {"images": images(1, 3, 21, 17)})


@pytest.mark.parametrize("opset", [22, 26])
def test_new_opsets(opset: int, tmp_path: Path) -> None:
    model = means(["N", 3, 8, 8])
    model.opset_import[0].version, model.ir_version = opset, 10
    guarded = purifier.guard(model, small_vae(), score=True, providers=[CPU])
    assert purifier.export(guarded, tmp_path / "guarded.onnx").opset == opset
    given = images(2, 3, 8, 8)
    with torch.no_grad():
        expected = small_vae().purify(torch.from_numpy(given)).mean((2, 3))
    np.testing.assert_allclose(plain(tmp_path / "guarded.onnx").run(None, {"images": given})[0], expected, atol=1e-5)
