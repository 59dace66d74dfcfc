"""Graphs that cannot be exported or grafted are errors."""

from __future__ import annotations

import pytest
from onnx import ModelProto, helper

import purifier
from onnx_models import FLOAT, linear, model_of
from purifier.data.pixels import Preprocessing
from purifier.errors import ClassifierError, ConfigError
from purifier.onnx.front import purifier_graph
from purifier.onnx.graft import graft


def malformed(change: str) -> ModelProto:
    model = linear()
    if change == "cycle":
        model.graph.node[0].input[0] = "logits"
    elif change == "one name for two values":
        model.graph.node[0].output[0] = "logits"
    elif change == "unknown type":
        model.graph.initializer[0].data_type = 77
    elif change == "endless function":
        node = helper.make_node("Again", ["a"], ["b"], domain="mine")
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
        model.functions.append(helper.make_function("mine", "Again", ["a"], ["b"], [node], imports))
        model.graph.node[0].CopyFrom(helper.make_node("Again", ["images"], ["flat"], domain="mine"))
        model.opset_import.append(imports[1])
    return model


@pytest.mark.parametrize("change", ["cycle", "one name for two values", "unknown type", "endless function"])
def test_a_malformed_graph_is_an_error(change: str) -> None:
    front = model_of(
        [helper.make_node("Identity", ["image"], ["purified"])],
        inputs=[("image", FLOAT, ["N", 3, 8, 8])],
        outputs=[("purified", FLOAT, ["N", 3, 8, 8])],
    )
    with pytest.raises(ClassifierError, match=r"cannot be read as a graph \(.+\); run onnx.checker"):
        graft(front, malformed(change), "images")


def test_giant_images_are_an_error_before_they_are_made() -> None:
    with pytest.raises(ConfigError, match=r"a batch of images \(2, 99999, 99999, 99999\) .* has 2e\+15 values"):
        purifier_graph(purifier.load("identity"), Preprocessing(), image_shape=(None, 99999, 99999, 99999))
