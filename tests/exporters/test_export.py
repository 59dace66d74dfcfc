from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

import purifier
from onnx_models import FLOAT, WEIGHT, model_of
from purifier.contracts.purifier import Purifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError, ExportError
from purifier.guards.exporter import exporters
from purifier.guards.exporting import export
from purifier.guards.guard import guard
from purifier.testing import check_exporter


class Net(nn.Module):
    """A convolutional classifier of 1x8x8 images whose output takes any form."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any] = lambda logits, features: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 36, 5)
        self.form = form

    def forward(self, photos: Tensor, temperature: float = 1.0) -> Any:
        features = self.features(photos)
        return self.form(self.head(features) / temperature, features)


@dataclasses.dataclass
class Answer:
    scores: Tensor
    hidden: Tensor | None = None


@functools.cache
def blur() -> Purifier:
    return purifier.load("blur")


@pytest.fixture(scope="module")
def vae() -> Purifier:
    torch.manual_seed(0)
    return purifier.load("vae:image_shape=1x8x8,channels=4,latent=3")


def pixels(count: int) -> Tensor:
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(count))


def open_plain(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def onnx_classifier(batch: int | str = "N", kind: int = FLOAT) -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=FLOAT),
        helper.make_node("Flatten", ["cast"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["y"]),
    ]
    inputs, outputs = [("x", kind, [batch, 1, 8, 8])], [("y", FLOAT, [batch, 5])]
    return model_of(nodes, inputs=inputs, outputs=outputs, initializers={"weight": WEIGHT[:64]}, opset=13)


def test_an_exported_torch_guard_runs_at_every_batch_size(vae: Purifier, tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    guarded = guard(Net().train(), vae, score=True)
    before = {key: value.clone() for key, value in guarded.state_dict().items()}
    report = export(guarded, path)
    session = open_plain(path)
    assert [value.name for value in session.get_inputs()] == ["photos"]
    assert [value.name for value in session.get_outputs()] == ["logits", "purifier_score"]
    for count in (1, 2, 7, 13):
        logits, scores = session.run(None, {"photos": pixels(count).numpy()})
        with torch.no_grad():
            expected = Net().eval()(vae.purify(pixels(count)))
            np.testing.assert_allclose(scores, vae.score(pixels(count)), atol=1e-5)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (report.path, report.format, report.opset) == (path, "onnx", 18)
    assert report.size == path.stat().st_size
    assert list(report.max_error) == [1, 2, 7]
    assert all(0 <= error < 1e-4 for error in report.max_error.values())
    assert guarded.training
    assert all(torch.equal(value, before[key]) for key, value in guarded.state_dict().items())


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda logits, features: (logits, [features, None, logits * 2]), ["output_0", "output_1_0", "output_1_2"]),
        (lambda logits, features: {"probabilities": logits.softmax(1)}, ["probabilities"]),
        (lambda logits, features: Answer(logits), ["scores"]),
    ],
    ids=["tuple", "dict", "dataclass"],
)
def test_outputs_are_named_after_the_classifiers_answer(
    form: Callable[[Tensor, Tensor], Any], names: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "guarded.onnx"
    export(guard(Net(form).eval(), "identity"), path, image_shape=(1, 8, 8), batches=(3,))
    assert [value.name for value in open_plain(path).get_outputs()] == names


def test_preprocessing_is_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    wanted = Preprocessing(scale=255, layout="NHWC", mean=(100.0,), std=(50.0,))

    class Last(Net):
        def forward(self, photos: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(photos.permute(0, 3, 1, 2))

    export(guard(Last().eval(), "blur", preprocessing=wanted), path, image_shape=(1, 8, 8))
    images = wanted.to_classifier(pixels(3))
    found = open_plain(path).run(None, {"photos": images.numpy()})[0]
    with torch.no_grad():
        expected = Last().eval()(wanted.to_classifier(purifier.load("blur").purify(pixels(3))))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_metadata_names_the_source_and_nothing_about_the_machine(vae: Purifier, tmp_path: Path) -> None:
    checkpoint = purifier.save(vae, tmp_path / "fashion.safetensors")
    path = tmp_path / "guarded.onnx"
    export(guard(Net(), checkpoint), path)
    metadata = open_plain(path).get_modelmeta().custom_metadata_map
    config = metadata["purifier.config"]
    assert json.loads(config)["image_shape"] == [1, 8, 8]
    assert metadata == {
        "purifier.format": "1",
        "purifier.version": metadata["purifier.version"],
        "purifier.plugin": "vae",
        "purifier.config": config,
        "purifier.config_hash": hashlib.sha256(config.encode()).hexdigest(),
        "purifier.checkpoint": "fashion.safetensors",
        "purifier.checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }
    content = path.read_bytes()
    for trace in (Path.cwd(), Path(torch.__file__).parent.parent, Path(__file__).name, tmp_path, "stack_trace"):
        assert str(trace).encode() not in content


def test_a_guarded_session_is_exported_as_it_runs(vae: Purifier, tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    session = guard(onnx_classifier(), vae, score=True)
    report = export(session, path)
    plain = open_plain(path)
    for mine, theirs in zip(
        plain.run(None, {"x": pixels(5).numpy()}), session.run(None, {"x": pixels(5).numpy()}), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert plain.get_modelmeta().custom_metadata_map["purifier.plugin"] == "vae"
    assert list(report.max_error) == [1, 2, 7]
    assert onnx.load(path).ir_version == 10


def test_a_fixed_batch_is_run_as_it_is_and_noted(tmp_path: Path) -> None:
    report = export(guard(onnx_classifier(batch=4), blur()), tmp_path / "guarded.onnx")
    assert list(report.max_error) == [4]
    assert "fixed at 4" in report.notes[0]


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.FLOAT16])
def test_classifiers_of_narrow_types_are_exported(kind: int, tmp_path: Path) -> None:
    report = export(guard(onnx_classifier(kind=kind), blur()), tmp_path / "guarded.onnx")
    assert list(report.max_error) == [1, 2, 7]


def test_a_classifier_that_magnifies_rounding_is_compared_on_the_same_purified_images(
    vae: Purifier, tmp_path: Path
) -> None:
    model = onnx_classifier()
    model.graph.node[0].CopyFrom(helper.make_node("Mul", ["x", "million"], ["large"]))
    model.graph.node.insert(1, helper.make_node("Sin", ["large"], ["cast"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e7).reshape(1), "million"))
    session = guard(model, vae, score=True)
    report = export(session, tmp_path / "guarded.onnx")
    assert "compared separately" in report.notes[0]
    assert max(report.max_error.values()) < 1e-4
    assert [value.name for value in open_plain(tmp_path / "guarded.onnx").get_outputs()] == ["y", "purifier_score"]
    weight = next(entry for entry in session.model.graph.initializer if entry.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), "weight"))
    with pytest.raises(ExportError, match="differs from the guard"):
        export(session, tmp_path / "guarded.onnx")


class Noisy(Purifier):
    Config = type(purifier.load("identity").config)
    gradient = "exact"

    def draw(self, pixels: Tensor, generator: Any) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else (pixels + 0.3 * noise).clamp(0, 1)


def test_a_random_purifier_is_exported_without_noise_and_that_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    report = export(guard(Net().eval(), Noisy(Noisy.Config())), path, image_shape=(1, 8, 8))
    assert "the purifier is random" in report.notes[0]
    with torch.no_grad():
        expected = Net().eval()(pixels(2))
    np.testing.assert_allclose(open_plain(path).run(None, {"photos": pixels(2).numpy()})[0], expected, atol=1e-4)


def test_a_file_that_differs_from_the_guard_is_not_written(vae: Purifier, tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    session = guard(onnx_classifier(), vae)
    for initializer in session.model.graph.initializer:
        if initializer.name == "weight":
            weight = numpy_helper.to_array(initializer) * np.float32(1.01)
            initializer.CopyFrom(numpy_helper.from_array(weight, "weight"))
    with pytest.raises(ExportError, match=r"batch 1, output 'y': differs from the guard by .* tolerance is 0.0001"):
        export(session, path)
    path.write_bytes(b"an older file")
    with pytest.raises(ExportError):
        export(session, path)
    assert path.read_bytes() == b"an older file"
    assert [other.name for other in tmp_path.iterdir()] == ["guarded.onnx"]
    export(session, path, tolerance=0.05)


def test_a_batch_size_baked_into_the_classifier_is_found(
    vae: Purifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx_classifier()
    model.graph.node[1].CopyFrom(helper.make_node("Reshape", ["cast", "sizes"], ["flat"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 64]), "sizes"))
    with pytest.raises(ExportError, match=r"the classifier itself fails on random images \(1, 1, 8, 8\)"):
        export(guard(model, vae), tmp_path / "guarded.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")  # ONNX Runtime would log the same


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.STRING])
def test_other_inputs_are_filled_in_if_they_are_numbers(kind: int, vae: Purifier, tmp_path: Path) -> None:
    model = onnx_classifier()
    model.graph.node.append(helper.make_node("Identity", ["label"], ["same"]))
    for values, name in ((model.graph.input, "label"), (model.graph.output, "same")):
        values.append(helper.make_tensor_value_info(name, kind, ["N"]))
    guarded = guard(model, vae)
    if kind == TensorProto.INT8:
        export(guarded, tmp_path / "guarded.onnx", batches=(2,))
    else:
        with pytest.raises(ConfigError, match=r"cannot fill in the classifier's input 'label' of tensor\(string\)"):
            export(guarded, tmp_path / "guarded.onnx")
        export(guard(model, vae, feed={"label": ["cat"]}), tmp_path / "guarded.onnx", batches=(2,))


def test_the_exporter_passes_the_conformance_kit(vae: Purifier, tmp_path: Path) -> None:
    exporter = exporters.get("onnx")()
    check_exporter(exporter, guard(onnx_classifier(), vae), tmp_path / "guarded.onnx")
