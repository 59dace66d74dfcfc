from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

import purifier
from purifier.contracts.purifier import Purifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ClassifierError, ConfigError, PixelError, PluginError
from purifier.guards.session import GuardedSession
from purifier.onnx.runtime import CPU, open_session

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))
KERNEL = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)


QUICK = ("light_inception_v1", "light_shufflenet", "light_squeezenet")


def zoo_model(path: Path) -> object:
    """A test case; the large models take seconds each."""
    return pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.integration)


@functools.cache
def load(spec: str) -> Purifier:
    return purifier.load(spec)


def classifier(
    kind: int = TensorProto.FLOAT,
    shape: tuple[int | str, ...] = ("N", 3, 8, 8),
    channels_last: bool = False,
    opset: int = 17,
) -> ModelProto:
    """A small convolutional classifier that takes images in the given format."""
    nodes = [helper.make_node("Cast", ["photo"], ["cast"], to=TensorProto.FLOAT)]
    if channels_last:
        nodes.append(helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]))
    nodes += [
        helper.make_node("Conv", ["planes" if channels_last else "cast", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("photo", kind, shape)],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [shape[0]]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], 4]),
        ],
        [numpy_helper.from_array(KERNEL, "kernel")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def pixels(count: int = 2) -> torch.Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(count))


def signature(session: onnxruntime.InferenceSession) -> list[list[tuple[str, str, list[int | str]]]]:
    return [
        [(value.name, value.type, value.shape) for value in side]
        for side in (session.get_inputs(), session.get_outputs())
    ]


@pytest.mark.parametrize("path", [zoo_model(path) for path in LIGHT])
def test_zoo_models_behind_identity_keep_their_outputs(path: Path) -> None:
    session = GuardedSession(path, load("identity"), providers=[CPU])
    original = open_session(path, providers=[CPU])
    name = original.get_inputs()[0].name
    images = np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)
    expected, found = original.run(None, {name: images}), session.run(None, {name: images})
    assert signature(session) == signature(original)
    assert not session.get_overridable_initializers()
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_all_nine_zoo_models_were_found() -> None:
    assert len(LIGHT) == 9


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (classifier(), Preprocessing()),
        (
            classifier(TensorProto.UINT8, ("N", 8, 8, 3), channels_last=True),
            Preprocessing(scale=255, layout="NHWC", dtype="uint8"),
        ),
        (classifier(TensorProto.FLOAT16, (2, 3, 8, 8)), Preprocessing(dtype="float16")),
        (classifier(shape=("N", 8, 8, 3), channels_last=True, opset=11), Preprocessing(layout="NHWC")),
    ],
    ids=["float32", "uint8-nhwc", "float16-fixed-batch", "nhwc-opset-11"],
)
def test_a_session_is_the_purifier_and_then_the_classifier(model: ModelProto, wanted: Preprocessing) -> None:
    session = GuardedSession(model, load("blur"), providers=[CPU])
    original = open_session(model, providers=[CPU])
    images = wanted.to_classifier(pixels())
    purified = wanted.to_classifier(load("blur").purify(wanted.to_pixels(images)))
    label, logits = session.run(None, {"photo": images.numpy()})
    expected_label, expected = original.run(None, {"photo": purified.numpy()})
    atol = 1e-5 * wanted.scale if wanted.dtype.startswith("float32") else 2e-3 * wanted.scale
    np.testing.assert_allclose(logits, expected, atol=atol)
    np.testing.assert_array_equal(label, expected_label)
    untouched = original.run(None, {"photo": images.numpy()})[1]
    assert np.abs(untouched - expected).max() > 5 * atol
    assert session.preprocessing == wanted
    assert signature(session) == signature(original)


def test_preprocessing_is_undone_and_done_again() -> None:
    wanted = Preprocessing(mean=(120.0, 110.0, 100.0), std=(60.0,) * 3, scale=255, channels="BGR")
    session = GuardedSession(classifier(), load("blur"), preprocessing=wanted, providers=[CPU])
    purified = wanted.to_classifier(load("blur").purify(pixels()))
    expected = open_session(classifier()).run(None, {"photo": purified.numpy()})[1]
    found = session.run(None, {"photo": wanted.to_classifier(pixels()).numpy()})[1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_images_may_be_a_reversed_or_read_only_view() -> None:
    session = GuardedSession(classifier(), load("blur"), providers=[CPU])
    images = pixels().numpy()
    images.flags.writeable = False
    expected = session.run(None, {"photo": np.ascontiguousarray(images[:, ::-1])})[1]
    np.testing.assert_array_equal(session.run(None, {"photo": images[:, ::-1]})[1], expected)


def test_score_is_the_last_output() -> None:
    session = GuardedSession(classifier(), load("blur"), score=True, providers=[CPU])
    assert [output.name for output in session.get_outputs()] == ["label", "logits", "purifier_score"]
    scores = session.run(["purifier_score"], {"photo": pixels(7).numpy()})[0]
    np.testing.assert_allclose(scores, load("blur").score(pixels(7)), atol=1e-6)


def test_a_session_keeps_its_parts() -> None:
    model = classifier()
    before = model.SerializeToString()
    session = GuardedSession(model, load("blur"), providers=[CPU])
    assert isinstance(session, onnxruntime.InferenceSession)
    assert model.SerializeToString() == before
    assert session.classifier.SerializeToString() == before
    assert (session.purifier.config, session.input, session.score) == (load("blur").config, "photo", False)
    onnx.checker.check_model(session.model)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["purifier.plugin"] == "blur"
    assert metadata["purifier.config"] == '{"sigma":1.0}'


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels()[:, :1], r"photo: expected images \(N, 3, 8, 8\), got \(2, 1, 8, 8\); resize them"),
        (pixels()[0], r"expected images \(N, 3, 8, 8\), got \(3, 8, 8\)"),
        (pixels().permute(0, 2, 3, 1), r"got \(2, 8, 8, 3\)"),
        (pixels().double(), r"expected float32 images, got float64; convert them with .astype\('float32'\)"),
        (pixels() * 255, r"expected values in \[0, 1\], got \[.*mean, std, scale=255"),
        (torch.full((1, 3, 8, 8), torch.nan), "got NaN in image 0 of 1"),
        ((pixels() * 255).tolist(), r"expected values in \[0, 1\]"),
        ((pixels() * 255).int().tolist(), "expected float32 images, got int64"),
        ([[0.5], [0.5, 0.5]], "expected a NumPy array of images, got list"),
        (None, r"got \(\)"),
    ],
)
def test_impossible_images_are_errors(images: Any, message: str) -> None:
    session = GuardedSession(classifier(), load("blur"), providers=[CPU])
    with pytest.raises(PixelError, match=message):
        session.run(None, {"photo": images.numpy() if isinstance(images, torch.Tensor) else images})


def test_lists_tensors_and_ort_values_are_images_too() -> None:
    session = GuardedSession(classifier(), load("blur"), providers=[CPU])
    expected = session.run(None, {"photo": pixels().numpy()})[1]
    for images in (pixels().tolist(), pixels(), onnxruntime.OrtValue.ortvalue_from_numpy(pixels().numpy())):
        np.testing.assert_array_equal(session.run(None, {"photo": images})[1], expected)


def test_a_purifier_for_other_images_is_an_error() -> None:
    vae = purifier.load("vae:image_shape=1x28x28")
    with pytest.raises(ConfigError, match=r"Vae purifies images \(1, 28, 28\), but the classifier takes \(3, 8, 8\)"):
        GuardedSession(classifier(), vae)


def test_a_purifiers_size_is_checked_where_the_classifier_leaves_it_free() -> None:
    vae = purifier.load("vae:image_shape=3x8x8,channels=4,latent=2")
    session = GuardedSession(classifier(shape=("N", 3, "H", "W")), vae, providers=[CPU])
    expected = open_session(classifier()).run(None, {"photo": vae.purify(pixels()).detach().numpy()})[1]
    np.testing.assert_allclose(session.run(None, {"photo": pixels().numpy()})[1], expected, atol=1e-5)
    with pytest.raises(PixelError, match=r"expected images \(N, 3, 8, 8\), got \(2, 3, 9, 9\)"):
        session.run(None, {"photo": torch.rand(2, 3, 9, 9).numpy()})


def test_preprocessing_must_agree_with_the_inputs_type() -> None:
    uint8 = classifier(TensorProto.UINT8)
    with pytest.raises(
        ConfigError,
        match="expected dtype=float32, which the classifier's input 'photo' takes, got float16; leave dtype out of",
    ):
        GuardedSession(classifier(), load("identity"), preprocessing=Preprocessing(dtype="float16"))
    with pytest.raises(ConfigError, match="uint8 classifier takes scale=255"):
        GuardedSession(uint8, load("identity"), preprocessing=Preprocessing())


def test_a_classifier_that_onnxruntime_cannot_open_is_an_error() -> None:
    model = classifier()
    model.graph.node[1].op_type = "Magic"
    with pytest.raises(ClassifierError, match=r"cannot (be read|open it|convert)"):
        GuardedSession(model, load("identity"))


class Branching(Purifier):
    Config = type(load("identity").config)
    gradient = "exact"

    def purify(self, pixels: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return pixels if pixels.mean() > 0.5 else pixels * 0.5


class TwoAtATime(Purifier):
    Config = type(load("identity").config)
    gradient = "exact"

    def purify(self, pixels: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return pixels + torch.zeros(2, 1, 1, 1)


@pytest.mark.parametrize("kind", [Branching, TwoAtATime])
def test_an_unexportable_purifier_is_an_error_naming_it(kind: type[Purifier]) -> None:
    with pytest.raises(PluginError, match=rf"{kind.__name__} cannot be exported to ONNX \("):
        GuardedSession(classifier(), kind(kind.Config()))


def test_an_unavailable_provider_is_an_error() -> None:
    with pytest.raises(ConfigError, match="has no 'AbacusExecutionProvider'"):
        GuardedSession(classifier(), load("blur"), providers=["AbacusExecutionProvider"])


def test_a_policy_chooses_the_provider_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    session = GuardedSession(classifier(), load("blur"), providers="prefer-cpu")
    assert session.get_providers() == [CPU]
    expected = GuardedSession(classifier(), load("blur"), providers=[CPU])(pixels())
    assert all(map(torch.equal, session(pixels()), expected))
    assert GuardedSession(classifier(), load("blur"), providers="max-performance").get_providers()
    if all(device.device.type.name != "NPU" for device in onnxruntime.get_ep_devices()):
        with pytest.raises(ConfigError, match=r"providers: 'prefer-npu' finds no NPU, ONNX Runtime chose \w+; run"):
            GuardedSession(classifier(), load("blur"), providers="prefer-npu")
    with pytest.raises(ConfigError, match="'prefer-cpu' is part of the session options; set it in them"):
        GuardedSession(classifier(), load("blur"), providers="prefer-cpu", sess_options=onnxruntime.SessionOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"providers": [5]}, r"providers: expected a list of names .*, got \[5\]"),
        ({"providers": CPU}, r"expected a list such as .* or one of .*prefer-gpu.*, got 'CPUExecutionProvider'"),
        ({"providers": [(CPU,)]}, "providers: expected a list"),
        ({"input": 1.5}, "input: expected a position or a name, got 1.5"),
    ],
)
def test_options_of_the_wrong_type_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuardedSession(classifier(), load("blur"), **options)
