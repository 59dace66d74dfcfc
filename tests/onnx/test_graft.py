from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper

import purifier
from onnx_models import FLOAT, WEIGHT, linear, model_of
from purifier.data.pixels import Preprocessing
from purifier.errors import ClassifierError, ConfigError
from purifier.onnx.front import purifier_graph
from purifier.onnx.graft import graft
from purifier.onnx.image_input import image_input, infer_preprocessing
from purifier.onnx.opset import opset_of, raise_opset
from purifier.onnx.reader import load_onnx


@functools.cache
def front(preprocessing: Preprocessing, shape: tuple[int | None, ...], score: bool, opset: int) -> ModelProto:
    """One export, a matter of seconds, serves all tests that graft the same graph."""
    return purifier_graph(purifier.load("blur"), preprocessing, image_shape=shape, score=score, opset=opset)


def guarded(model: ModelProto, *, score: bool = False) -> ModelProto:
    image = image_input(model)
    piece = front(infer_preprocessing(image), image.shape, score, max(18, opset_of(model)))
    return graft(piece, model, image.name, shown=["purifier_score"] if score else [])


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
def test_the_classifiers_names_may_look_like_the_purifiers(prefix: str) -> None:
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
    with pytest.raises(ClassifierError, match="'purifier_score'; rename it, or guard it without score=True"):
        guarded(guarded(linear(), score=True), score=True)


def test_operators_that_cannot_be_converted_are_errors() -> None:
    model = model_of(
        [helper.make_node("ThresholdedRelu", ["images"], ["logits"])],
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("logits", FLOAT, ["N", 3, 8, 8])],
        opset=1,
        ir_version=3,
    )
    with pytest.raises(ClassifierError, match=r"No Adapter.*; export it again at opset 18"):
        raise_opset(model, 18)
