from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

import purifier
from purifier.errors import ClassifierError, ConfigError
from purifier.onnx_graph import (
    graft,
    image_input,
    infer_preprocessing,
    load_onnx,
    opset_of,
    purifier_graph,
    raise_opset,
)
from purifier.pixels import Preprocessing

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
WEIGHT = np.random.default_rng(3).normal(size=(3 * 8 * 8, 5)).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[tuple[str, int, list[int | str] | None]],
    outputs: list[tuple[str, int, list[int | str] | None]],
    initializers: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    ir_version: int = 8,
    domains: tuple[str, ...] = (),
) -> ModelProto:
    values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    stored = [numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()]
    return helper.make_model(
        helper.make_graph(nodes, "classifier", *values, stored),
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)],
        ir_version=ir_version,
    )


def linear(prefix: str = "", **options: object) -> ModelProto:
    """A linear classifier of 3x8x8 images whose inner names start with ``prefix``."""
    nodes = [
        helper.make_node("Flatten", ["images"], [f"{prefix}flat"], name=f"{prefix}node"),
        helper.make_node("MatMul", [f"{prefix}flat", f"{prefix}weight"], ["logits"], name=f"{prefix}node_1"),
    ]
    return model_of(
        nodes,
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("logits", FLOAT, ["N", 5])],
        initializers={f"{prefix}weight": WEIGHT},
        **options,
    )


@functools.cache
def front(preprocessing: Preprocessing, shape: tuple[int | None, ...], score: bool, opset: int) -> ModelProto:
    """One export, a matter of seconds, serves all tests that graft the same graph."""
    return purifier_graph(purifier.load("blur"), preprocessing, image_shape=shape, score=score, opset=opset)


def guarded(model: ModelProto, *, score: bool = False) -> ModelProto:
    image = image_input(model)
    piece = front(infer_preprocessing(image), image.shape, score, max(18, opset_of(model)))
    return graft(piece, model, image.name, score=score)


def run(model: ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, 8, 8), dtype=np.float32)


def blurred(images: np.ndarray) -> np.ndarray:
    return purifier.load("blur").purify(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_graft_is_the_classifier_of_the_purified_image_at_every_batch_size(count: int) -> None:
    model = guarded(linear(), score=True)
    logits, scores = run(model, images=pixels(count))
    images = torch.from_numpy(pixels(count))
    np.testing.assert_allclose(logits, blurred(pixels(count)).reshape(count, -1) @ WEIGHT, atol=1e-4)
    np.testing.assert_allclose(scores, purifier.load("blur").score(images), atol=1e-6)
    assert [output.name for output in model.graph.output] == ["logits", "purifier_score"]


@pytest.mark.parametrize("prefix", ["purifier/", "purifier_1/", "purifier"])
def test_names_of_the_classifier_may_look_like_the_purifiers(prefix: str) -> None:
    inner = guarded(linear())  # a guarded model, guarded again, has every name the purifier's graph has
    twice = guarded(inner)
    np.testing.assert_allclose(
        run(twice, images=pixels())[0],
        blurred(blurred(pixels())).reshape(2, -1) @ WEIGHT,
        atol=1e-4,
    )
    np.testing.assert_allclose(
        run(guarded(linear(prefix)), images=pixels())[0], run(inner, images=pixels())[0], atol=1e-6
    )


def test_the_classifier_given_is_not_changed() -> None:
    model = linear(opset=11, ir_version=5)
    before = model.SerializeToString()
    guarded(model)
    assert model.SerializeToString() == before


def test_an_opset_is_raised_without_rewriting_where_no_operator_changed() -> None:
    model = linear(opset=13, ir_version=7)
    raised = raise_opset(model, 18)
    assert (opset_of(raised), raised.ir_version) == (18, 10)
    assert raised.graph == model.graph


@pytest.mark.parametrize("opset", [19, 21])
def test_a_newer_opset_is_kept(opset: int) -> None:
    model = guarded(linear(opset=opset, ir_version=10))
    assert opset_of(model) == opset
    np.testing.assert_allclose(run(model, images=pixels())[0], blurred(pixels()).reshape(2, -1) @ WEIGHT, atol=1e-4)


def old_with_branches() -> ModelProto:
    """Opset 11: an If whose bodies read the image from outside, and operators that have changed since."""
    then = helper.make_graph(
        [helper.make_node("ReduceMin", ["images"], ["bright"], axes=[2, 3], keepdims=0)],
        "then",
        [],
        [helper.make_tensor_value_info("bright", FLOAT, ["N", 3])],
    )
    otherwise = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["images"], ["top"], axes=[2, 3]),
            helper.make_node("Squeeze", ["top"], ["flat"], axes=[2, 3]),
            helper.make_node("Neg", ["flat"], ["dark"]),
        ],
        "else",
        [],
        [helper.make_tensor_value_info("dark", FLOAT, ["N", 3])],
    )
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "threshold"], ["bright_enough"]),
        helper.make_node("If", ["bright_enough"], ["scores"], then_branch=then, else_branch=otherwise),
        helper.make_node("Softmax", ["scores"], ["logits"]),
    ]
    model = model_of(
        nodes,
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("logits", FLOAT, ["N", 3])],
        initializers={"threshold": np.array(0.5, dtype=np.float32)},
        opset=11,
        ir_version=6,
    )
    annotation = model.graph.quantization_annotation.add(tensor_name="mean")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="threshold")
    model.metadata_props.add(key="classes", value="cat,dog,ship")
    return model


@pytest.mark.parametrize("brightness", [0.2, 1.0])
def test_branches_see_the_purified_image_and_old_operators_are_converted(brightness: float) -> None:
    model = old_with_branches()
    images = pixels() * np.float32(brightness)
    images[:, :, 3, 3] = brightness  # a speck that the blur takes away
    expected = run(model, images=blurred(images))[0]
    assert np.abs(expected - run(model, images=images)[0]).max() > 1e-3
    np.testing.assert_allclose(run(guarded(model), images=images)[0], expected, atol=1e-5)


def test_quantisation_annotations_and_metadata_survive_conversion() -> None:
    model = old_with_branches()
    result = guarded(model)
    assert result.graph.quantization_annotation == model.graph.quantization_annotation
    assert [(entry.key, entry.value) for entry in result.metadata_props] == [("classes", "cat,dog,ship")]


def test_model_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    model = model_of(
        [helper.make_node("Twice", ["images"], ["doubled"], domain="mine")],
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("doubled", FLOAT, ["N", 3, 8, 8])],
        opset=17,
        domains=("mine",),
    )
    model.functions.append(function)
    result = guarded(load_onnx(model))
    assert not result.functions
    np.testing.assert_allclose(run(result, images=pixels())[0], 2 * blurred(pixels()), atol=1e-6)


def test_initializers_listed_as_inputs_stay_weights() -> None:
    model = linear(opset=9, ir_version=3)
    model.graph.input.append(helper.make_tensor_value_info("weight", FLOAT, [192, 5]))
    assert image_input(model, None).name == "images"
    result = guarded(model)
    assert [value.name for value in result.graph.input] == ["images"]
    np.testing.assert_allclose(run(result, images=pixels())[0], blurred(pixels()).reshape(2, -1) @ WEIGHT, atol=1e-4)


def test_an_output_that_is_the_input_gives_what_was_fed() -> None:
    model = model_of(
        [helper.make_node("Identity", ["images"], ["copy"])],
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("images", FLOAT, ["N", 3, 8, 8]), ("copy", FLOAT, ["N", 3, 8, 8])],
    )
    echo, copy = run(guarded(model), images=pixels())
    np.testing.assert_array_equal(echo, pixels())
    np.testing.assert_allclose(copy, blurred(pixels()), atol=1e-6)


def test_a_graph_without_nodes_can_be_guarded() -> None:
    model = model_of([], inputs=[("images", FLOAT, ["N", 3, 8, 8])], outputs=[("images", FLOAT, ["N", 3, 8, 8])])
    echo, scores = run(guarded(model, score=True), images=pixels())
    np.testing.assert_array_equal(echo, pixels())
    assert (scores > 0).all()


def test_a_classifier_written_out_of_order_is_put_in_order() -> None:
    model = linear(opset=11, ir_version=6)
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    np.testing.assert_allclose(
        run(guarded(model), images=pixels())[0], blurred(pixels()).reshape(2, -1) @ WEIGHT, atol=1e-4
    )


def test_a_loop_sees_the_purified_image() -> None:
    """The image is added to itself three times over, in the body of a Loop that reads it from outside."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "images"], ["sum"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", FLOAT, None),
        ],
    )
    model = model_of(
        [helper.make_node("Loop", ["turns", "", "images"], ["logits"], body=body)],
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("logits", FLOAT, ["N", 3, 8, 8])],
        initializers={"turns": np.array(3)},
        opset=13,
    )
    np.testing.assert_allclose(run(guarded(model), images=pixels())[0], 4 * blurred(pixels()), atol=1e-5)


def test_a_free_height_and_width_stay_free() -> None:
    model = model_of(
        [helper.make_node("GlobalMaxPool", ["images"], ["logits"])],
        inputs=[("images", FLOAT, ["N", 3, "H", "W"])],
        outputs=[("logits", FLOAT, ["N", 3, 1, 1])],
    )
    result = guarded(model)
    for height, width in ((8, 8), (20, 11)):
        images = np.random.default_rng(0).random((3, 3, height, width), dtype=np.float32)
        expected = blurred(images).max(axis=(2, 3), keepdims=True)
        np.testing.assert_allclose(run(result, images=images)[0], expected, atol=1e-6)


def test_unknown_channels_are_an_error_unless_the_preprocessing_counts_them() -> None:
    shape = (None, None, 8, 8)
    with pytest.raises(ConfigError, match="how many channels"):
        purifier_graph(purifier.load("blur"), Preprocessing(), image_shape=shape)
    purifier_graph(purifier.load("identity"), Preprocessing(mean=(0.5, 0.5, 0.5)), image_shape=shape)


def test_no_trace_of_the_exporting_machine_is_left() -> None:
    content = guarded(linear(), score=True).SerializeToString()
    for trace in (str(Path.cwd()), str(Path(torch.__file__).parent), "stack_trace", ".py"):
        assert trace.encode() not in content


def test_score_cannot_be_added_twice() -> None:
    with pytest.raises(ClassifierError, match="'purifier_score' already; guard it with score=False"):
        guarded(guarded(linear(), score=True), score=True)


def test_what_no_converter_knows_is_an_error_saying_to_export_again() -> None:
    model = model_of(
        [helper.make_node("ThresholdedRelu", ["images"], ["logits"])],
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("logits", FLOAT, ["N", 3, 8, 8])],
        opset=1,
        ir_version=3,
    )
    with pytest.raises(ClassifierError, match=r"No Adapter.*; export it again at opset 18"):
        raise_opset(model, 18)


def two_images(first: int = FLOAT) -> ModelProto:
    return model_of(
        [helper.make_node("Add", ["left", "right"], ["sum"])],
        inputs=[("left", first, ["N", 3, 8, 8]), ("right", FLOAT, ["N", 3, 8, 8])],
        outputs=[("sum", FLOAT, ["N", 3, 8, 8])],
    )


def test_one_image_input_is_found_and_several_must_be_chosen_from() -> None:
    with pytest.raises(ClassifierError, match=r"2 inputs that can be images.*0: left float32 \(N, 3, 8, 8\)"):
        image_input(two_images(), None)
    assert image_input(two_images(), 0).name == "left"
    assert image_input(two_images(), "right").position == 1
    assert image_input(two_images(first=TensorProto.INT64), None).name == "right"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("middle", "no input 'middle'; its inputs: 0: left"),
        (2, "no input at position 2"),
        (-1, "no input at position -1"),
        (0, r"left int64 \(N, 3, 8, 8\) takes no images: expected float or uint8 with 4 dimensions"),
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
        (with_external_data(), "keeps 'weight' in another file.*save it in one file"),
        (with_sparse_weights(), "stores 'weight' as a sparse tensor.*save it with dense weights"),
        (with_node("Magic", ["images"], "wizard"), "uses wizard.Magic, which is no operator of ONNX"),
        (with_node("EPContext", ["images"], "com.microsoft"), "EPContext node.*compiled from"),
        (with_node("ConstantOfShape", ["giant"]), r"ConstantOfShape '' makes 6.87e\+10 elements.*not opened"),
        (with_node("Expand", ["images", "giant"]), "Expand '' makes"),
        (with_node("RandomNormal", [], shape=[2**36]), "RandomNormal '' makes"),
        (inside_a_branch(helper.make_node("ConstantOfShape", ["giant"], ["extra"])), "ConstantOfShape"),
        (inside_a_branch(helper.make_node("Magic", [], ["extra"], domain="wizard")), "wizard.Magic"),
        (ModelProto(), "is not an ONNX model"),
    ],
)
def test_what_cannot_be_guarded_is_refused(model: ModelProto, message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        load_onnx(model)


def test_a_small_constant_and_microsofts_operators_are_let_through() -> None:
    model = with_node("ConstantOfShape", ["small"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 4]), "small"))
    assert load_onnx(model) is model
    assert load_onnx(with_node("Gelu", ["images"], "com.microsoft"))


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"no file .*nowhere\.onnx; expected an .onnx file"):
        load_onnx(tmp_path / "nowhere.onnx")
    content = linear().SerializeToString()
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ClassifierError, match="damaged or not ONNX"):
        load_onnx(path)
    path.write_bytes(b"")
    with pytest.raises(ClassifierError, match="not an ONNX model"):
        load_onnx(str(path))


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as opened:
        opened.truncate(1_600_000_000)  # sparse: takes no room
    with pytest.raises(ClassifierError, match=r"1\.6 GB, the limit is 1\.5 GB"):
        load_onnx(path)
