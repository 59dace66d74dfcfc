"""Rejection inside ONNX graphs: guarded sessions and exported files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rejecting_graphs import PIXELS, REJECTED, Net, bright, classes, classifier, plain, run, without_label
from torch import Tensor

from onnx_models import FLOAT
from purifier.contracts.purifier import Purifier
from purifier.errors import ClassifierError, ConfigError, RejectedError
from purifier.guards.exporting import export
from purifier.guards.guard import guard
from purifier.rejection.calibration import CALIBRATION_KEY
from scoring_purifiers import Bright, Classes, calibrated


def in_torch(which: Purifier, **options: Any) -> np.ndarray:
    with torch.no_grad():
        return guard(Net(), which, **options)(PIXELS).numpy()


OWN = ["label", "scores", "probabilities"]


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"score": True}, ["purifier_score", "purifier_rejected"]),
        ({"on_reject": "flag"}, ["purifier_rejected"]),
        ({"on_reject": "flag", "score": True}, ["purifier_score", "purifier_rejected"]),
    ],
)
def test_rejection_is_an_output_beside_the_score(options: dict[str, Any], added: list[str], tmp_path: Path) -> None:
    session = guard(classifier(), bright(), **options)
    found = run(session)
    assert list(found) == OWN + added
    np.testing.assert_array_equal(found["purifier_rejected"], REJECTED)
    assert session.get_outputs()[-1].type == "tensor(bool)"
    assert session.get_outputs()[-1].shape == ["N"]
    np.testing.assert_allclose(found["scores"], in_torch(bright()), atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["purifier.threshold"], metadata["purifier.fpr"]) == ("0.5", "0.05")
    export(session, tmp_path / "guarded.onnx")
    again = run(plain(tmp_path / "guarded.onnx"))
    assert list(again) == list(found)
    assert all(np.array_equal(again[name], found[name]) for name in found)


def test_an_uncalibrated_score_adds_no_rejection() -> None:
    assert list(run(guard(classifier(), Bright(), score=True))) == [*OWN, "purifier_score"]
    assert list(run(guard(classifier(), bright()))) == OWN


@pytest.mark.parametrize(
    ("which", "options"),
    [
        (bright, {"on_reject": "abstain"}),
        (bright, {"on_reject": "abstain", "abstain": 7}),
        (classes, {"on_reject": "reclassify"}),
    ],
)
@pytest.mark.parametrize("kind", [FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_all_that_is_computed_from_the_replaced_logits_follows(
    which: Callable[[], Purifier], options: dict[str, Any], kind: int, tmp_path: Path
) -> None:
    model, marks = classifier(kind), options == {"on_reject": "abstain"}
    session, untouched = (
        guard(without_label(model) if marks else model, which(), output="scores", **options),
        run(guard(classifier(kind), which())),
    )
    found = run(session)
    assert list(found) == (OWN[1:] if marks else OWN)
    atol = 5e-2 if kind == TensorProto.FLOAT16 else 1e-4
    np.testing.assert_allclose(found["scores"].astype(np.float32), in_torch(which(), **options), atol=atol)
    assert found["scores"].dtype == untouched["scores"].dtype
    assert session.get_outputs()[-1].shape == ["N", 10]
    scores = torch.from_numpy(found["scores"]).double()
    np.testing.assert_allclose(
        found["probabilities"].astype(np.float64), scores.softmax(1), atol=1e-2 if atol > 1e-3 else 1e-5
    )
    for name, value in found.items():
        np.testing.assert_array_equal(value[~REJECTED], untouched[name][~REJECTED])
    if not marks:
        np.testing.assert_array_equal(found["label"], scores.argmax(1))
        assert (found["label"] != untouched["label"])[REJECTED].any()
    export(session, tmp_path / "guarded.onnx")
    again = run(plain(tmp_path / "guarded.onnx"))
    assert all(np.array_equal(again[name], value, equal_nan=True) for name, value in found.items())


@pytest.mark.parametrize("kind", ["number", "column", "unknown", "top", "name", "yes or no"])
def test_nan_is_refused_where_another_output_would_still_name_a_class(kind: str) -> None:
    model = without_label(classifier())
    node, output = {
        "number": (("ArgMax", {"axis": 1, "keepdims": 0}), (TensorProto.INT64, ["N"])),
        "column": (("ArgMax", {"axis": 1}), (TensorProto.INT64, ["N", 1])),
        "unknown": (("ArgMax", {"axis": 1}), (TensorProto.INT64, None)),
        "top": (("TopK", {}), (TensorProto.INT64, ["N", 3])),
        "name": (("ArgMax", {"axis": 1, "keepdims": 0}), (TensorProto.STRING, ["N"])),
        "yes or no": (("Greater", {}), (TensorProto.BOOL, ["N", 10])),
    }[kind]
    extra = {"top": ["three"], "yes or no": ["zero"]}.get(kind, [])
    made = {"top": ["values", "choice"], "name": ["number"]}.get(kind, ["choice"])
    model.graph.node.append(helper.make_node(node[0], ["scores", *extra], made, **node[1]))
    if kind == "name":
        names = {"keys_int64s": [*range(10)], "values_strings": [*"abcdefghij"]}
        model.graph.node.append(helper.make_node("LabelEncoder", ["number"], ["choice"], domain="ai.onnx.ml", **names))
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.array([3]), "three"), numpy_helper.from_array(np.float32(0), "zero")]
    )
    model.graph.output.append(helper.make_tensor_value_info("choice", *output))
    with pytest.raises(ClassifierError, match=r"answers NaN, but .* 'choice' .* use on_reject='flag', or abstain=K"):
        guard(model, bright(), output="scores", on_reject="abstain")
    found = run(guard(model, bright(), output="scores", on_reject="abstain", abstain=3))
    chosen = {"top": [3, 0, 1], "name": "d", "yes or no": [False] * 10}.get(kind, 3)
    assert all(np.asarray(row).tolist() in (chosen, [chosen]) for row in found["choice"][REJECTED])


def test_a_label_that_does_not_follow_the_chosen_answer_is_refused() -> None:
    with pytest.raises(ClassifierError, match=r"'probabilities', from which .* 'label' .* is not computed.*--output"):
        guard(
            *(classifier(), bright()),
            output="probabilities",
            output_kind="probabilities",
            on_reject="abstain",
            abstain=3,
        )
    sizes = without_label(classifier())
    sizes.graph.node.append(helper.make_node("Shape", ["scores"], ["size"]))
    sizes.graph.output.append(helper.make_tensor_value_info("size", TensorProto.INT64, ["R"]))
    found = run(guard(sizes, bright(), output="scores", on_reject="abstain"))
    assert found["size"].tolist() == [6, 10]


def test_the_output_called_logits_is_the_one_replaced() -> None:
    model = without_label(classifier(name="logits"))
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(reversed(outputs))
    found = run(guard(model, bright(), on_reject="abstain"))
    assert list(found) == ["probabilities", "logits"]
    for value in found.values():
        np.testing.assert_array_equal(np.isnan(value).all(1), REJECTED)


def test_a_session_raises_for_rejected_images() -> None:
    session = guard(classifier(), bright(), on_reject="raise")
    assert [output.name for output in session.get_outputs()] == OWN
    dark = {"x": PIXELS[~REJECTED].numpy()}
    label, scores, _ = session.run(None, dark)
    np.testing.assert_allclose(scores, in_torch(bright())[~REJECTED], atol=1e-4)
    assert [value.tolist() for value in session.run(["label"], dark)] == [label.tolist()]
    score, same = session.run(["purifier_score", "label"], dark)
    np.testing.assert_allclose(score, bright().score(PIXELS[~REJECTED]), atol=1e-6)
    assert same.tolist() == label.tolist()
    with pytest.raises(RejectedError, match="3 of 6 images are rejected: they score above 0.5, or NaN;") as raised:
        session.run(["label"], {"x": PIXELS.numpy()})
    np.testing.assert_array_equal(raised.value.rejected, REJECTED)
    np.testing.assert_allclose(raised.value.score, bright().score(PIXELS), atol=1e-6)
    shown = guard(classifier(), bright(), on_reject="raise", score=True)
    assert [output.name for output in shown.get_outputs()][3:] == ["purifier_score", "purifier_rejected"]
    assert len(shown.run(None, dark)) == 5


def test_images_whose_score_is_nan_are_rejected() -> None:
    class Lost(Bright):
        def score(self, pixels: Tensor) -> Tensor:
            return torch.log(0.5 - super().score(pixels)) - 10

    found = run(guard(classifier(), calibrated(Lost()), on_reject="flag", score=True))
    np.testing.assert_array_equal(np.isnan(found["purifier_score"]), REJECTED)
    np.testing.assert_array_equal(found["purifier_rejected"], REJECTED)


def test_classes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ConfigError, match="abstain: expected a class from 0 to 9, got 10"):
        guard(classifier(), bright(), output="scores", on_reject="abstain", abstain=10)
    with pytest.raises(ClassifierError, match="'scores' has, which abstain=3 needs; leave abstain out"):
        guard(classifier(declared="K"), bright(), output="scores", on_reject="abstain", abstain=3)
    found = run(guard(without_label(classifier(declared=None)), bright(), output="scores", on_reject="abstain"))
    np.testing.assert_array_equal(np.isnan(found["scores"]).all(1), REJECTED)

    class Five(Classes):
        def classify(self, pixels: Tensor) -> Tensor:
            return super().classify(pixels)[:, :5]

    with pytest.raises(ConfigError, match="the purifier has 5 classes, but the classifier has 10"):
        guard(classifier(), calibrated(Five()), output="scores", on_reject="reclassify")


def test_a_classifier_without_logits() -> None:
    model = classifier()
    del model.graph.output[1:]
    with pytest.raises(ClassifierError, match="must return logits.*'label' INT64.*'flag'"):
        guard(model, bright(), on_reject="abstain")
    assert list(run(guard(model, bright(), on_reject="flag"))) == ["label", "purifier_rejected"]


def test_a_name_in_use_is_an_error() -> None:
    with pytest.raises(ClassifierError, match="already has a value called 'purifier_rejected'; rename it"):
        guard(classifier(name="purifier_rejected"), bright(), on_reject="flag")


def test_a_session_keeps_the_calibration_of_its_graph() -> None:
    late = Bright()
    session = guard(classifier(), late, score=True)
    calibrated(late)
    assert CALIBRATION_KEY not in session.purifier.provenance
    assert "purifier.threshold" not in session.get_modelmeta().custom_metadata_map
