"""What people do with an exported file: quantise it, convert it to half precision, guard it again."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import purifier
from onnx_models import FLOAT, model_of
from purifier.contracts.purifier import Purifier
from purifier.onnx.runtime import CPU

WEIGHT = np.random.default_rng(0).normal(size=(3 * 8 * 8, 5)).astype(np.float32) / 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight


def onnx_net() -> onnx.ModelProto:
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    sizes: list[int | str] = ["N", 3, 8, 8]
    return model_of(
        nodes, inputs=[("images", FLOAT, sizes)], outputs=[("logits", FLOAT, ["N", 5])], initializers={"w": WEIGHT}
    )


@functools.cache
def vae() -> Purifier:
    torch.manual_seed(0)
    return purifier.load("vae:image_shape=3x8x8,channels=4,latent=3").eval()


def images() -> np.ndarray:
    return np.random.default_rng(1).random((4, 3, 8, 8), dtype=np.float32)


def quantised(source: Path, made: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, made)


def halved(source: Path, made: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small weights are rounded
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), made)


def halved_throughout(source: Path, made: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx.save(convert_float_to_float16(onnx.load(source)), made)


@pytest.mark.parametrize("made_of", ["torch", "onnx"])
@pytest.mark.parametrize(("tool", "dtype"), [(quantised, "f4"), (halved, "f4"), (halved_throughout, "f2")])
def test_an_exported_guard_can_be_converted_and_guarded_again(
    made_of: str, tool: Callable[[Path, Path], None], dtype: str, tmp_path: Path
) -> None:
    source, made = tmp_path / "guarded.onnx", tmp_path / "converted.onnx"
    guarded = purifier.guard(Net() if made_of == "torch" else onnx_net(), vae(), score=True)
    options = {"image_shape": (3, 8, 8)} if made_of == "torch" else {}
    purifier.export(guarded, source, **options)
    tool(source, made)
    given = {"images": images().astype(dtype)}
    expected = onnxruntime.InferenceSession(source, providers=[CPU]).run(["logits"], {"images": images()})[0]
    session = onnxruntime.InferenceSession(made, providers=[CPU])
    found = session.run(["logits"], given)[0]
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    again = purifier.guard(made, "identity", providers=[CPU])
    np.testing.assert_allclose(again.run(["logits"], given)[0], found, rtol=0.05, atol=0.05)


def test_no_stored_weight_is_also_declared_as_a_value(tmp_path: Path) -> None:
    for number, classifier in enumerate((Net(), onnx_net())):
        path = tmp_path / f"guarded{number}.onnx"
        options = {"image_shape": (3, 8, 8)} if number == 0 else {}
        purifier.export(purifier.guard(classifier, vae()), path, **options)
        graph = onnx.load(path).graph
        stored = {tensor.name for tensor in graph.initializer}
        assert len(stored) > 4
        assert not stored & {value.name for value in graph.value_info}


def with_outputs(kind: str) -> onnx.ModelProto:
    """The classifier with an output that is no tensor of numbers."""
    model = onnx_net()
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    nodes, outputs = model.graph.node, model.graph.output
    if kind == "map":
        nodes.append(
            helper.make_node("ZipMap", ["logits"], ["extra"], domain="ai.onnx.ml", classlabels_int64s=[*range(5)])
        )
        value = onnx.ValueInfoProto(name="extra")
        mapped = value.type.sequence_type.elem_type.map_type
        mapped.key_type = TensorProto.INT64
        mapped.value_type.tensor_type.elem_type = FLOAT
        mapped.value_type.tensor_type.shape.SetInParent()
        outputs.append(value)
    elif kind == "sequence":
        nodes.append(helper.make_node("SplitToSequence", ["logits"], ["extra"], axis=0))
        outputs.append(helper.make_tensor_sequence_value_info("extra", FLOAT, None))
    else:
        nodes.append(helper.make_node("ArgMax", ["logits"], ["class"], axis=1, keepdims=0))
        names = {"keys_int64s": [*range(5)], "values_strings": [*"abcde"]}
        nodes.append(helper.make_node("LabelEncoder", ["class"], ["extra"], domain="ai.onnx.ml", **names))
        outputs.append(helper.make_tensor_value_info("extra", TensorProto.STRING, ["N"]))
    return model


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize("kind", ["map", "sequence", "string"])
def test_outputs_that_are_no_tensors_of_numbers_pass_through(kind: str, opset: int, tmp_path: Path) -> None:
    classifier = with_outputs(kind)
    classifier.opset_import[0].version = opset
    before = [(value.name, value.type.WhichOneof("value")) for value in classifier.graph.output]
    guarded = purifier.guard(classifier, "blur", providers=[CPU])
    path = tmp_path / "guarded.onnx"
    purifier.export(guarded, path)
    assert [(value.name, value.type.WhichOneof("value")) for value in onnx.load(path).graph.output] == before
    purified = purifier.load("blur").purify(torch.from_numpy(images())).numpy()
    original = onnxruntime.InferenceSession(classifier.SerializeToString(), providers=[CPU])
    expected = original.run(None, {"images": purified})[1]
    if kind == "map":
        expected = [[*row.items()] for row in expected]
    for session in (guarded, onnxruntime.InferenceSession(path, providers=[CPU])):
        found = session.run(None, {"images": images()})[1]
        if kind == "map":
            found = [[*row.items()] for row in found]
        if kind == "string":
            assert list(found) == list(expected)
        else:
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_map_that_differs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = purifier.guard(with_outputs("map"), "blur", providers=[CPU])
    stored = next(tensor for tensor in guarded.model.graph.initializer if tensor.name == "w")
    values = numpy_helper.to_array(stored).copy()
    values[0, 0] += 0.01
    stored.CopyFrom(numpy_helper.from_array(values, "w"))
    with pytest.raises(purifier.PurifierError, match="differs from the guard"):
        purifier.export(guarded, tmp_path / "guarded.onnx")
