"""What outputs beside the logits hold for images with bad pixels, and what sessions and files do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from bad_pixel_models import BAD, COUNT, MANY, Net, graph, images, only, plain, spoilt, which
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

import purifier
from onnx_models import FLOAT
from purifier import Preprocessing
from purifier.errors import ExportError
from purifier.guards.session import GuardedSession
from purifier.onnx.labels import Labels
from purifier.output import Output


def test_parts_of_an_output_with_a_row_per_image_get_no_answer() -> None:
    class Several(Net):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]  # a dict, not a tensor
            logits = super().forward(x)
            extra = {"label": logits.argmax(1), "byte": logits.argmax(1).byte(), "loss": logits.mean(), "note": "text"}
            return {"logits": logits, "maps": x, "sure": logits.amax(1) > 0, **extra}

    guarded = purifier.guard(Several().eval(), which(), check=False)
    found, expected = guarded(spoilt()), guarded(images())
    assert found["logits"][BAD].isnan().all() and found["maps"][BAD].isnan().all()
    assert (found["label"][BAD], found["byte"][BAD]) == (-1, 255)
    assert found["loss"].isfinite() and found["note"] == "text"
    for name in ("logits", "maps", "label", "byte", "sure"):
        kept = torch.arange(COUNT) != BAD
        assert torch.equal(found[name][kept], expected[name][kept])


@pytest.mark.parametrize("declared", [["N"], ["other"], [None], None])
@pytest.mark.parametrize("kind", ["INT64", "INT32", "INT16", "UINT8", "STRING"])
def test_labels_of_bad_images_name_no_class(kind: str, declared: Any) -> None:
    model = only(graph(), "logits")
    if kind == "STRING":
        names = {"keys_int64s": [*range(10)], "values_strings": [*"abcdefghij"]}
        model.graph.node.append(helper.make_node("LabelEncoder", ["label"], ["chosen"], domain="ai.onnx.ml", **names))
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    else:
        model.graph.node.append(helper.make_node("Cast", ["label"], ["chosen"], to=TensorProto.DataType.Value(kind)))
    model.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.DataType.Value(kind), declared))
    made = purifier.guard(model, which(), output="chosen", output_kind="label").model
    (expected,), (found,) = (plain(made).run(["chosen"], {"x": given.numpy()}) for given in (images(), spoilt(MANY)))
    assert {row for place, row in enumerate(found.tolist()) if place in MANY} == {
        {"STRING": "", "UINT8": 255}.get(kind, -1)
    }
    assert all(row == expected[place] for place, row in enumerate(found) if place not in MANY)
    assert Labels(made, Output("chosen", "label")).classes == ([*"abcdefghij"] if kind == "STRING" else [*range(10)])


def test_outputs_of_other_forms_stay_as_they_are_or_hold_nan() -> None:
    model = only(graph(), "logits")
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 2]), "constant"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["logits"], ["mean"], keepdims=0),
            helper.make_node("Identity", ["constant"], ["same"]),
            helper.make_node("Transpose", ["logits"], ["turned"], perm=[1, 0]),
            helper.make_node("SplitToSequence", ["logits"], ["rows"], axis=0),
        ]
    )
    for name, shape in (("mean", None), ("same", None), ("turned", [None, "M"])):
        model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, shape))
    model.graph.output.append(helper.make_tensor_sequence_value_info("rows", FLOAT, None))
    session = purifier.guard(model, which(), output="logits")
    for given in (images(), images()[:1], images()[:0]):
        logits, mean, same, turned, rows = plain(session.model).run(None, {"x": given.numpy()})
        assert mean.shape == () and same.tolist() == [1, 2]
        np.testing.assert_array_equal(turned, logits.T)
        np.testing.assert_array_equal(rows[0] if len(given) else logits, logits[:1])
    rows = plain(session.model).run(["rows"], {"x": spoilt().numpy()})[0]
    assert [place for place, row in enumerate(rows) if np.isnan(row).all()] == [BAD]


def test_a_fixed_batch_and_other_formats(tmp_path: Path) -> None:
    way = Preprocessing(mean=(0.5,), std=(0.25,), dtype="float16")
    model = graph(TensorProto.FLOAT16)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = COUNT
    session = purifier.guard(model, which(), output="logits", preprocessing=way)
    written = purifier.export(session, tmp_path / "half.onnx").path
    label, logits, prob = plain(written).run(None, {"x": way.to_classifier(spoilt(MANY)).numpy()})
    bad = np.array([place in MANY for place in range(COUNT)])
    for found in (label == -1, np.isnan(logits).all(1), np.isnan(logits).any(1), np.isnan(prob).all(1)):
        np.testing.assert_array_equal(found, bad)
    bytes_only = purifier.guard(graph(TensorProto.UINT8), which(), output="logits")
    assert not [node for node in bytes_only.model.graph.node if "bad_pixels" in node.name]


def test_an_exported_file_is_audited_as_before(tmp_path: Path) -> None:
    data = purifier.ImageData("own", images(), torch.zeros(COUNT, dtype=torch.int64))
    for number, options in enumerate(
        ({}, {"on_reject": "flag", "on_bad_pixels": "reject"}, {"on_bad_pixels": "clamp"})
    ):
        session = purifier.guard(graph(), which(), output="logits", **options)
        written = purifier.export(session, tmp_path / f"{number}.onnx").path
        metadata = plain(written).get_modelmeta().custom_metadata_map
        assert metadata["purifier.on_bad_pixels"] == options.get("on_bad_pixels", "raise")
        report = purifier.audit(str(written), data, attacks=(), output="logits")
        other = purifier.audit(session, data, attacks=())
        results = [{row.model: row.result.share for row in made.rows if row.result} for made in (report, other)]
        assert results[0]["undefended"] == results[1]["guarded"]


def test_sessions_run_otherwise_than_by_run_give_a_bad_image_no_answer() -> None:
    session = purifier.guard(graph(), which(), output="logits")
    assert isinstance(session, GuardedSession)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(spoilt().numpy())
    label, logits, _ = session.run(None, {"x": value})
    assert np.isnan(logits).all(1).nonzero()[0].tolist() == [BAD] and label[BAD] == -1


def test_a_file_whose_labels_do_not_follow_the_replaced_logits_is_not_written(tmp_path: Path) -> None:
    session = purifier.guard(graph(), which(), output="logits", on_reject="abstain", abstain=3)
    for node in session.model.graph.node:
        if node.op_type == "ArgMax":
            node.input[0] = "purifier/rejection/logits"
    with pytest.raises(ExportError, match="output 'label'"):
        purifier.export(session, tmp_path / "guarded.onnx")
