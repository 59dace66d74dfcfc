"""Classifiers without gradients: every headline says that the figures are of queries, and why."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from onnx import ModelProto, TensorProto, helper

from audit_helpers import NearestMean, printed
from purifier.auditing.audit import audit
from purifier.auditing.report import AuditReport
from purifier.classifiers.white_box import WhiteBox
from purifier.data.pixels import Preprocessing
from purifier.guards.guard import guard
from purifier.reporting.formats import render
from purifier.reporting.summary import verdict

SQUARE = {"attacks": ("square:queries=30",), "eps": 0.1, "probes": 2}

CALLED_WHITE_BOX = (
    *("worst case of white-box attacks", ", white-box attacks", "| white-box: ", "White-box attacks alone"),
    *("The white-box attacks among them", "white-box evasion attack"),
)
"""How the formats call a white-box figure."""


def with_label(model: ModelProto) -> ModelProto:
    """The model with the class of each image as its only output."""
    model = ModelProto.FromString(model.SerializeToString())
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
    return model


@pytest.fixture(params=["labels", "operator", "comparison", "uint8"])
def queried(request, onnx_classifier, classifier, data, tmp_path, monkeypatch) -> tuple[AuditReport, str]:
    """The report of a classifier without gradients, and why it has none."""
    if request.param == "labels":
        settings = {**SQUARE, "attacks": ("hopskipjump:queries=60",), "output_kind": "label"}
        return audit(with_label(onnx_classifier), data, **settings), "it answers with a class and nothing else"
    if request.param == "operator":
        request.getfixturevalue("queries_only")
        return audit(guard(onnx_classifier, "blur"), data, **SQUARE), "no support for the operator Sorcery"
    if request.param == "comparison":
        right = WhiteBox.forward
        monkeypatch.setattr(WhiteBox, "forward", lambda self, pixels: 1.01 * right(self, pixels))
        return audit(onnx_classifier, data, **SQUARE), "torch's answers differ from ONNX Runtime's"

    class OfBytes(NearestMean):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.float() / 255)

    images = Preprocessing(scale=255.0, dtype="uint8")
    return audit(OfBytes().eval(), data, preprocessing=images, **SQUARE), "torch computes no gradient of uint8"


def test_every_headline_says_queries_only_and_why(queried, tmp_path):
    report, why = queried
    assert why in report.classifier["queries_only"]
    assert {row.route for row in report.rows} <= {None, "none", "oblivious"}
    assert {case.scope for case in report.worst_case} == {"all"}
    head = verdict(report)
    assert head.title.endswith("under attack by queries only")
    assert any(why in sentence and "No attack is white-box" in sentence for sentence in head.sentences)
    lines = " ".join(printed(report).split())
    assert "attacks queries only, none of them white-box" in lines and why in lines
    assert "worst case per image, by queries only, accuracy" in lines
    assert "right by queries only" in repr(report)
    assert AuditReport.load(report.save(tmp_path)).classifier["queries_only"] == report.classifier["queries_only"]


def test_every_format_says_queries_only_and_calls_no_figure_white_box(queried):
    report, why = queried
    for to in ("html", "md", "junit", "sarif", "evidence"):
        text = " ".join(render(report, to).replace("\\", "").replace("&#39;", "'").split())
        assert "under attack by queries only" in text, to
        assert why in text, to
        for called in CALLED_WHITE_BOX:
            assert called not in text, (to, called)
    for line in csv.DictReader(io.StringIO(render(report, "csv"))):
        assert line["white_box"] in ("False", "false", "", "0")
    assert all(row["route"] not in ("exact", "bpda") for row in json.loads(report.to_json())["rows"])


def test_a_classifier_with_gradients_has_the_usual_headline(report, onnx_classifier, data):
    for found in (report, audit(onnx_classifier, data, attacks=("fgsm",), eps=0.05, probes=2)):
        assert "queries_only" not in found.classifier and "queries only" not in printed(found) + repr(found)
        assert verdict(found).title.endswith("under attack")


@pytest.mark.parametrize("behind", [None, "blur"])
def test_weights_that_torch_gets_for_gradients_are_no_state(behind, onnx_classifier, data):
    given = onnx_classifier if behind is None else guard(onnx_classifier, behind)
    found = audit(given, data, preset="quick", eps=0.05, probes=6)
    assert "stateful" not in {flag.name for flag in found.flags}
    assert any(row.route in ("exact", "bpda") for row in found.rows)
