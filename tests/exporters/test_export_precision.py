"""Files in half precision and in 8 bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import purifier
from onnx_models import FLOAT, model_of
from purifier.contracts.purifier import Purifier
from purifier.data.images import ImageData
from purifier.errors import ConfigError, ExportError
from purifier.guards.exporting import export
from purifier.guards.guard import guard
from purifier.onnx.graphs import all_graphs


class Net(nn.Module):
    """Tells which quarter of a 1x8x8 image is the brightest, by a convolution and a linear layer."""

    def __init__(self, scale: float = 1.0, waves: float | None = None) -> None:
        super().__init__()
        self.mean = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 4)
        self.scale, self.waves = scale, waves
        nn.init.constant_(self.mean.weight, 1 / 9)
        nn.init.zeros_(self.mean.bias)
        quarters = torch.zeros(4, 8, 8)
        for place, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            quarters[place, top : top + 4, left : left + 4] = 1.0
        with torch.no_grad():
            self.head.weight.copy_(quarters.reshape(4, 1, 64).expand(4, 4, 64).reshape(4, 256))
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.head(self.mean(images).flatten(1))
        return logits if self.waves is None else torch.sin(self.waves * logits)


def bright(count: int, labelled: bool = True) -> ImageData:
    """Images with one bright quarter, and which it is."""
    generator = torch.Generator().manual_seed(3)
    images = 0.4 * torch.rand((count, 1, 8, 8), generator=generator)
    labels = torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = divmod(label, 2)
        image[0, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 0.5
    return ImageData("bright", images, labels if labelled else None)


@pytest.fixture(scope="module")
def vae() -> Purifier:
    torch.manual_seed(0)
    return purifier.load("vae:image_shape=1x8x8,channels=4,latent=3,skip=true").eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vae = purifier.load("vae:image_shape=1x8x8,channels=4,latent=3")
    return purifier.save(vae, tmp_path_factory.mktemp("base") / "base.safetensors")


def run(path: Path, images: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def kinds_of_weights(path: Path) -> Counter[int]:
    graphs = all_graphs(onnx.load(path).graph)
    return Counter(tensor.data_type for graph in graphs for tensor in graph.initializer if len(tensor.dims) > 1)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("int8", TensorProto.INT8)])
@pytest.mark.parametrize("made_of", ["torch", "onnx"])
def test_weights_are_small_and_inputs_and_outputs_stay_float32(
    precision: str, kind: int, made_of: str, vae: Purifier, tmp_path: Path
) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    inputs, outputs = [("x", FLOAT, ["N", 1, 8, 8])], [("y", FLOAT, ["N", 4])]
    model = model_of(nodes, inputs=inputs, outputs=outputs, initializers={"w": weight})
    guarded = guard(Net() if made_of == "torch" else model, vae)
    path, data = tmp_path / "small.onnx", bright(80)
    report = export(guarded, path, precision=precision, data=data, sample=4, min_agreement=0.9)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    assert kinds_of_weights(path)[kind] >= 8
    assert [entry.domain for entry in onnx.load(path).opset_import] == [""]
    assert report.card["precision"] == session.get_modelmeta().custom_metadata_map["purifier.precision"] == precision
    assert report.card["clean"]["images"] == 40
    pixels = data.batch(range(3))[0]
    exact = export(guarded, tmp_path / "exact.onnx")
    expected, found = run(exact.path, pixels), run(path, pixels)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bad_image_gets_no_answer_and_the_others_theirs(precision: str, vae: Purifier, tmp_path: Path) -> None:
    path, data = tmp_path / "small.onnx", bright(80)
    export(guard(Net(), vae), path, precision=precision, data=data, sample=4)
    good = data.batch(range(6))[0]
    bad = good.clone()
    bad[1, 0, 2, 3], bad[2, 0, 0, 0], bad[3, 0, 5, 5], bad[4] = float("nan"), float("inf"), 1.2, 1e6
    found = run(path, bad)
    assert np.isnan(found[1:5]).all()
    np.testing.assert_allclose(found[[0, 5]], run(path, good)[[0, 5]], atol=1e-3)


@pytest.mark.integration
@pytest.mark.parametrize("loop", ["false", "true"])
def test_gradient_steps_become_fp16_and_stay_float32_in_int8(loop: str, base: Path, tmp_path: Path) -> None:
    guarded = guard(Net(), f"latent:base={base},steps=3,loop={loop}")
    data, made = bright(80), {}
    for precision in ("fp32", "fp16", "int8"):
        made[precision] = tmp_path / f"{precision}.onnx"
        # The decoder is not trained, so all images look alike and classes are near ties: logits are compared below.
        given = {"data": data, "sample": 1, "min_agreement": 0.0} if precision == "int8" else {}
        export(guarded, made[precision], precision=precision, **given)
    assert not kinds_of_weights(made["fp16"])[TensorProto.FLOAT]
    kinds = kinds_of_weights(made["int8"])
    assert kinds[TensorProto.FLOAT] and kinds[TensorProto.INT8]
    pixels = data.batch(range(8))[0]
    expected = run(made["fp32"], pixels)
    for precision, most in (("fp16", 0.02), ("int8", 0.1)):
        assert np.abs(run(made[precision], pixels) - expected).max() < most * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, r"needs data= \(--data\) with 64 images or more.*got none; give more, or use fp16"),
        ({"precision": "int8", "data": bright(63)}, "got 63"),
        ({"precision": "int4"}, "precision: expected one of fp32, fp16, int8, got 'int4'"),
        ({"precision": 16}, "got 16"),
        ({"data": bright(8), "min_agreement": 2}, r"min_agreement: expected a share of images in \[0, 1\], got 2"),
        ({"data": bright(8), "sample": 0}, "sample: expected a number of images, 1 or more, got 0"),
        ({"data": torch.rand(8, 1, 7, 7)}, r"data: expected images \(1, 8, 8\) \(C, H, W\), got \(1, 7, 7\)"),
        ({"data": bright(8), "batch": 9}, "expected at least one batch of 9 images, got 8"),
        ({"data": 5}, "data: expected a DATA spec"),
    ],
)
def test_wrong_options_are_errors(options: dict, message: str, vae: Purifier, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export(guard(Net(), vae), tmp_path / "guarded.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_an_overflow_in_half_precision_is_an_error_and_the_old_file_stays(vae: Purifier, tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    export(guard(Net(), vae), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ExportError, match=r"the guard does not survive fp16: values may be above 65504.*use fp32"):
        export(guard(Net(scale=1e5), vae), path, precision="fp16")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_too_little_agreement_is_an_error_and_no_file(vae: Purifier, tmp_path: Path) -> None:
    """Waves so short that 8 bits cannot tell where on them an image is."""
    guarded, path = guard(Net(waves=30.0), vae), tmp_path / "guarded.onnx"
    message = (
        r"answers only \d+\.\d+% of 40 images as the guard does, expected 95.00% or more; the file was not written"
    )
    with pytest.raises(ExportError, match=message):
        export(guarded, path, precision="int8", data=bright(80), tolerance=1e-2)
    assert not list(tmp_path.iterdir())
    options = {"tolerance": 1e-2, "min_agreement": 0.0, "sample": 1}
    card = export(guarded, path, precision="int8", data=bright(80), **options).card
    assert card["clean"]["agreement"] < 0.95


def test_a_quantised_classifier_is_not_quantised_again(vae: Purifier, tmp_path: Path) -> None:
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    export(guard(Net(), vae), first, precision="int8", data=bright(80), sample=1)
    with pytest.raises(ExportError, match=r"the classifier is quantised already, its graph has QuantizeLinear"):
        export(guard(str(first), "identity"), again, precision="int8", data=bright(80), sample=1)
    assert not again.exists()


def test_equal_weights_of_one_layer_each_are_no_steps() -> None:
    from purifier.exporters._steps import name_steps

    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    other = numpy_helper.from_array(np.ones((4, 4), np.float32), "v")

    def names(*weights: str) -> list[str]:
        nodes, value = [], "x"
        for place, used in enumerate(weights):
            nodes.append(helper.make_node("MatMul", [value, used], [f"m{place}"], name=f"m{place}"))
            nodes.append(helper.make_node("Relu", [f"m{place}"], [f"r{place}"]))
            value = f"r{place}"
        model = model_of(nodes, inputs=[("x", FLOAT, ["N", 4])], outputs=[(value, FLOAT, ["N", 4])])
        model.graph.initializer.extend([weight, other])
        return name_steps(model)

    assert names("w", "v") == []
    assert names("v", "w", "w") == ["m1", "step_3", "m2"]
    assert names("w", "v", "w") == ["m0", "step_1", "m1", "step_3", "m2"]
