from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_models import FLOAT, UINT8, linear, model_of
from purifier.data.pixels import Preprocessing
from purifier.errors import ClassifierError
from purifier.onnx.image_input import image_input, infer_preprocessing
from purifier.onnx.reader import load_onnx


def two_images(first: int = FLOAT) -> ModelProto:
    return model_of(
        [helper.make_node("Add", ["left", "right"], ["sum"])],
        inputs=[("left", first, ["N", 3, 8, 8]), ("right", FLOAT, ["N", 3, 8, 8])],
        outputs=[("sum", FLOAT, ["N", 3, 8, 8])],
    )


def no_images() -> ModelProto:
    return model_of(
        [helper.make_node("Neg", ["ids"], ["y"])],
        inputs=[("ids", TensorProto.INT64, ["N"])],
        outputs=[("y", TensorProto.INT64, ["N"])],
    )


def test_one_image_input_is_found_and_several_need_a_choice() -> None:
    with pytest.raises(
        ClassifierError, match=r"^2 of .* inputs can be images: 0: left float32 \(N, 3, 8, 8\), 1: .*--input"
    ):
        image_input(two_images(), None)
    with pytest.raises(
        ClassifierError, match=r"^none of .* can be images: 0: ids int64 \(N\); expected a float or uint8"
    ):
        image_input(no_images(), None)
    assert image_input(two_images(), 0).name == "left"
    assert image_input(two_images(), "right").position == 1
    assert image_input(two_images(first=TensorProto.INT64), None).name == "right"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("middle", "no input 'middle'; its inputs: 0: left"),
        (2, "no input at position 2"),
        (-1, "no input at position -1"),
        (0, r"expected float or uint8 images with 4 dimensions, got left int64 \(N, 3, 8, 8\)"),
    ],
)
def test_an_impossible_choice_of_input_is_an_error(chosen: int | str, message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        image_input(two_images(first=TensorProto.INT64), chosen)


@pytest.mark.parametrize(
    ("dtype", "sizes", "expected"),
    [
        (FLOAT, ["N", 3, 8, 8], Preprocessing()),
        (FLOAT, ["N", 1, 28, 28], Preprocessing()),
        (FLOAT, [1, 224, 224, 3], Preprocessing(layout="NHWC")),
        (UINT8, ["N", "H", "W", 3], Preprocessing(scale=255, layout="NHWC", dtype="uint8")),
        (TensorProto.FLOAT16, ["N", 3, 8, 3], Preprocessing(dtype="float16")),
        (FLOAT, None, Preprocessing()),
    ],
)
def test_preprocessing_follows_from_type_and_shape(
    dtype: int, sizes: list[int | str] | None, expected: Preprocessing
) -> None:
    model = model_of(
        [helper.make_node("Shape", ["images"], ["size"])],
        inputs=[("images", dtype, sizes)],
        outputs=[("size", TensorProto.INT64, [4])],
    )
    assert infer_preprocessing(image_input(model, None)) == expected


def with_external_data() -> ModelProto:
    model = linear()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")
    return model


def with_sparse_weights() -> ModelProto:
    model = linear()
    values = numpy_helper.from_array(np.ones(1, np.float32), "weight")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [192, 5]))
    return model


def with_node(op_type: str, inputs: list[str], domain: str = "", **attributes: object) -> ModelProto:
    model = linear()
    model.graph.node.insert(0, helper.make_node(op_type, inputs, ["extra"], domain=domain, **attributes))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**16]), "giant"))
    return model


def inside_a_branch(node: onnx.NodeProto) -> ModelProto:
    body = helper.make_graph([node], "body", [], [helper.make_tensor_value_info("extra", FLOAT, None)])
    return with_node("If", ["condition"], then_branch=body, else_branch=body)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_external_data(), "keeps 'weight' in another file, and a ModelProto does not say where.*give the path"),
        (with_sparse_weights(), "stores 'weight' as a sparse tensor.*save it with dense weights"),
        (with_node("Magic", ["images"], "wizard"), "uses wizard.Magic, which is not an operator of ONNX"),
        (with_node("Conv", ["images"], "com.microsoft.nchwc"), "saved it with ORT_ENABLE_ALL; save it with .*EXTENDED"),
        (with_node("EPContext", ["images"], "com.microsoft"), "EPContext node.*compiled from"),
        (
            with_node("ConstantOfShape", ["giant"]),
            r"ConstantOfShape '' creates 6.87e\+10 elements.*not opened.*onnx_limits\(elements=\.\.\.\)",
        ),
        (with_node("Expand", ["images", "giant"]), "Expand '' creates"),
        (with_node("RandomNormal", [], shape=[2**36]), "RandomNormal '' creates"),
        (inside_a_branch(helper.make_node("ConstantOfShape", ["giant"], ["extra"])), "ConstantOfShape"),
        (inside_a_branch(helper.make_node("Magic", [], ["extra"], domain="wizard")), "wizard.Magic"),
        (ModelProto(), "is not an ONNX model"),
    ],
)
def test_models_that_cannot_be_guarded_are_errors(model: ModelProto, message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        load_onnx(model)


@pytest.mark.parametrize("version", [2**40, 0, -3])
def test_opsets_that_no_runtime_can_have_are_errors(version: int) -> None:
    model = linear()
    model.opset_import[0].version = version
    with pytest.raises(ClassifierError, match=f"is damaged .opset {version} of domain ''"):
        load_onnx(model)


def test_a_small_constant_and_microsofts_operators_are_accepted() -> None:
    model = with_node("ConstantOfShape", ["small"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 4]), "small"))
    assert load_onnx(model) is model
    assert load_onnx(with_node("Gelu", ["images"], "com.microsoft"))


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="cannot read a+: File name too long"):
        load_onnx("a" * 5000)
    with pytest.raises(ClassifierError, match=r"no file .*nowhere\.onnx; expected an .onnx file"):
        load_onnx(tmp_path / "nowhere.onnx")
    content = linear().SerializeToString()
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ClassifierError, match="damaged or not ONNX"):
        load_onnx(path)
    path.write_bytes(content.replace(b"classifier", b"\xff" * 10))
    with pytest.raises(ClassifierError, match="damaged .its graph's name is not text"):
        load_onnx(path)
    path.write_bytes(content.replace(b"logits", b"\xff" * 6))
    with pytest.raises(ClassifierError, match=r"cannot be read as a graph .*copy or export it again"):
        load_onnx(path)
    path.write_bytes(b"")
    with pytest.raises(ClassifierError, match="not an ONNX model"):
        load_onnx(str(path))


def test_the_runtimes_own_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "classifier.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(linear().SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises(ClassifierError, match=r"classifier\.ort is in ONNX Runtime's own format .*give the .onnx file"):
        load_onnx(path)


def test_an_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "private.onnx"
    onnx.save(linear(), path)
    monkeypatch.setattr(Path, "open", denied)  # root may read everything, so the file's mode proves nothing
    with pytest.raises(ClassifierError, match=r"cannot read .*private\.onnx: Permission denied$"):
        load_onnx(path)


def test_a_file_over_the_limit_is_an_error_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as opened:
        opened.truncate(1_600_000_000)  # sparse: takes no room
    with pytest.raises(ClassifierError, match=r"1\.6 GB, the limit is 1\.5 GB"):
        load_onnx(path)
