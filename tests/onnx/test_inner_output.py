"""Files whose outputs are chosen from logits inside the graph: advice, and audits of what is inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper

import purifier
from onnx_models import FLOAT, model_of
from purifier.data.images import ImageData
from purifier.data.pixels import Preprocessing
from purifier.errors import ClassifierError
from purifier.onnx.inner_output import inner_advice, with_inner_output
from purifier.onnx.runtime import CPU

WEIGHT = np.random.default_rng(0).normal(size=(3 * 8 * 8, 4)).astype(np.float32)
LABEL: tuple[Any, ...] = ("label", TensorProto.INT64, ["N"])
PGD = {"attacks": ["pgd:steps=5"], "eps": 0.02, "device": "cpu", "probes": 2}


def ending_in(kind: str) -> ModelProto:
    """A linear classifier that ends in this operator, with its logits, called ``scores``, inside."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=1),
    ]
    chosen = {
        "argmax": [helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0)],
        "argmax of shares": [
            helper.make_node("ArgMax", ["shares"], ["at"], axis=1),
            helper.make_node("Squeeze", ["at", "one"], ["label"]),
        ],
        "topk": [helper.make_node("TopK", ["scores", "two"], ["best", "label"], axis=1)],
        "zipmap": [
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
            helper.make_node("ZipMap", ["shares"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[*range(4)]),
        ],
    }
    made = model_of(
        [*nodes, *chosen[kind]],
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("label", TensorProto.INT64, ["N", 2])] if kind == "topk" else [LABEL],
        initializers={"weight": WEIGHT, "one": np.array([1]), "two": np.array([2])},
        domains=("ai.onnx.ml",),
    )
    if kind == "zipmap":
        numbers = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
        made.graph.output.append(helper.make_value_info("map", helper.make_sequence_type_proto(numbers)))
    return made


KINDS = ("argmax", "argmax of shares", "topk", "zipmap")


def with_logits() -> ModelProto:
    made = ending_in("argmax")
    del made.graph.output[:], made.graph.node[2:]
    made.graph.output.append(helper.make_tensor_value_info("scores", FLOAT, ["N", 4]))
    return made


def data(count: int = 16) -> ImageData:
    pixels = np.random.default_rng(1).random((count, 3, 8, 8), dtype=np.float32)
    labels = (pixels.reshape(count, -1) @ WEIGHT).argmax(1)
    return ImageData("own", torch.from_numpy(pixels), torch.from_numpy(labels))


def results_of(given: Any, **reading: Any) -> list[Any]:
    report = purifier.audit(given, data(), **PGD, **reading)
    return [(row.attack, row.route, row.result) for row in report.rows]


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_inside_are_audited_like_those_of_a_file_that_gives_them(kind: str) -> None:
    model = ending_in(kind)
    before = model.SerializeToString()
    found = results_of(model, output="scores")
    assert found == results_of(with_logits()) and {route for _, route, _ in found} == {None, "exact"}
    assert 0 < found[1][2].correct < found[0][2].correct == 16
    assert model.SerializeToString() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_guard_shows_the_logits_inside_as_one_more_output(kind: str) -> None:
    session = purifier.guard(ending_in(kind), "identity", output="scores", providers=[CPU])
    names = [output.name for output in session.get_outputs()]
    assert names == [*(output.name for output in ending_in(kind).graph.output), "scores"]
    pixels = data().batch(range(16))[0].numpy()
    assert np.allclose(session.run(["scores"], {"images": pixels})[0], pixels.reshape(16, -1) @ WEIGHT, atol=1e-4)
    guarded = purifier.guard(with_logits(), "identity", providers=[CPU])
    assert results_of(session) == results_of(guarded)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guarded", [False, True])
def test_an_error_names_the_logits_inside(kind: str, guarded: bool) -> None:
    given = purifier.guard(ending_in(kind), "identity", providers=[CPU]) if guarded else ending_in(kind)
    with pytest.raises(ClassifierError, match="must return logits.*; output='scores' gives the logits inside"):
        purifier.audit(given, data(), **PGD)


def test_an_audit_by_labels_names_the_logits_inside() -> None:
    report = purifier.audit(ending_in("argmax"), data(), attacks=(), device="cpu", output_kind="label")
    assert "class and nothing else, but output='scores' gives the logits" in report.classifier["queries_only"]


def test_the_report_has_the_hash_of_the_file_as_it_is() -> None:
    reports = [
        purifier.audit(ending_in("argmax"), data(), attacks=(), device="cpu", **reading)
        for reading in ({"output": "scores"}, {"output_kind": "label"})
    ]
    assert len({report.classifier["sha256"] for report in reports}) == 1


def test_probabilities_inside_a_map_are_named_as_such() -> None:
    model = ending_in("zipmap")
    model.graph.node[2].CopyFrom(helper.make_node("Sigmoid", ["scores"], ["shares"]))
    del model.graph.output[0]
    assert (
        inner_advice(model)
        == "output='shares' with output_kind='probabilities' gives the probabilities inside its graph"
    )


def test_nothing_is_named_where_nothing_is_hidden() -> None:
    assert inner_advice(with_logits()) == ""
    model = ending_in("argmax")
    model.graph.output.append(helper.make_tensor_value_info("scores", FLOAT, ["N", 4]))
    assert inner_advice(model) == ""
    assert with_inner_output(model, "scores") is model and with_inner_output(model, None) is model
    assert with_inner_output(model, "weight") is model and with_inner_output(model, "nothing") is model


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("at", "must return logits.*'at' .*int64"),
        ("images", "has no output 'images'"),
        ("nothing", "has no output 'nothing'; .*; output='scores' gives the logits"),
    ],
)
def test_a_value_that_cannot_be_the_answer_is_an_error(name: str, says: str) -> None:
    with pytest.raises(ClassifierError, match=says):
        purifier.audit(ending_in("argmax of shares"), data(), output=name, **PGD)


def test_a_value_of_unknown_type_is_an_error() -> None:
    model = ending_in("argmax")
    model.graph.node[0].CopyFrom(helper.make_node("Strange", ["images"], ["flat"], domain="com.microsoft"))
    with pytest.raises(ClassifierError, match="output: the type of the value 'scores' inside the graph is not known"):
        with_inner_output(model, "scores")
    known = helper.make_tensor_value_info("scores", FLOAT, ["N", 4])
    model.graph.value_info.append(known)
    assert with_inner_output(model, "scores").graph.output[-1].type.tensor_type.elem_type == FLOAT


def test_sizes_but_the_number_of_images_are_declared(tmp_path: Any) -> None:
    made = with_inner_output(ending_in("argmax"), "scores")
    onnx.checker.check_model(made, full_check=True)
    dims = made.graph.output[-1].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [0, 4]
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=[CPU])
    assert session.run(["scores"], {"images": np.zeros((3, 3, 8, 8), np.float32)})[0].shape == (3, 4)


def test_gradients_reach_the_images_through_the_logits_inside() -> None:
    from purifier.classifiers.pixel_classifier import OnnxPixelClassifier
    from purifier.output import Output

    classifier = OnnxPixelClassifier(ending_in("zipmap"), Preprocessing(), output=Output("scores"))
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(classifier(pixels)[:, 2].sum(), pixels)
    assert np.allclose(found.numpy(), WEIGHT[:, 2].reshape(1, 3, 8, 8), atol=1e-5)
