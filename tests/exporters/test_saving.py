"""Weights in a file of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import purifier
from onnx_models import linear
from purifier.errors import ExportError
from purifier.exporters import _card, _saving
from purifier.guards.exporting import export
from purifier.guards.guard import guard


def pixels() -> np.ndarray:
    return np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)


def run(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": pixels()})[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_saving, "EXTERNAL_ABOVE", 1000)


def test_large_weights_are_in_a_file_beside_the_graph(low: None, tmp_path: Path) -> None:
    session = guard(linear(), "blur")
    report = export(session, tmp_path / "guarded.onnx")
    beside = report.card["external_data"]
    assert names(tmp_path) == ["guarded.onnx", beside["file"], "guarded.onnx.json"]
    weights = tmp_path / beside["file"]
    assert (beside["bytes"], beside["sha256"]) == (weights.stat().st_size, _saving.digest(weights))
    assert beside["file"] == f"guarded.onnx.{beside['sha256'][:16]}.data"
    assert report.size == report.card["bytes"] == weights.stat().st_size + report.path.stat().st_size
    np.testing.assert_array_equal(run(report.path), session.run(None, {"images": pixels()})[0])
    stored = onnx.load(report.path, load_external_data=False).graph.initializer
    assert [tensor.name for tensor in stored if tensor.data_location == onnx.TensorProto.EXTERNAL] == ["weight"]
    kept = {tensor.name: tensor.data_location for tensor in session.model.graph.initializer}
    assert kept["weight"] == onnx.TensorProto.DEFAULT  # the session's own model is as before
    assert export(session, report.path).card["sha256"] == report.card["sha256"]


def test_the_file_with_its_weights_can_be_moved_guarded_and_audited(low: None, tmp_path: Path) -> None:
    made, moved = tmp_path / "made", tmp_path / "moved"
    report = export(guard(linear(), "blur"), made / "guarded.onnx")
    expected = run(report.path)
    made.rename(moved)
    again = guard(str(moved / "guarded.onnx"), "identity")
    np.testing.assert_allclose(again.run(None, {"images": pixels()})[0], expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_converted_file_has_them_too(low: None, precision: str, tmp_path: Path) -> None:
    data = torch.rand((64, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    given = {"data": data, "sample": 1, "min_agreement": 0.5} if precision == "int8" else {}
    limit = 500 if precision == "int8" else 1000
    low_enough = pytest.MonkeyPatch()
    low_enough.setattr(_saving, "EXTERNAL_ABOVE", limit)
    try:
        report = export(guard(linear(), "blur"), tmp_path / "guarded.onnx", precision=precision, **given)
    finally:
        low_enough.undo()
    assert report.card["external_data"]["file"] in names(tmp_path)
    exact = guard(linear(), "blur").run(None, {"images": pixels()})[0]
    np.testing.assert_allclose(run(report.path), exact, atol=0.05 * np.abs(exact).max())


def test_a_new_export_removes_the_weights_of_the_last(low: None, tmp_path: Path) -> None:
    path, bystander = tmp_path / "guarded.onnx", tmp_path / "guarded.onnx.data"
    bystander.write_bytes(b"mine")
    first = export(guard(linear(), "blur"), path).card["external_data"]["file"]
    model = linear()
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    second = export(guard(model, "blur"), path).card["external_data"]["file"]
    assert first != second
    assert names(tmp_path) == sorted(["guarded.onnx", "guarded.onnx.data", second, "guarded.onnx.json"])


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_export_leaves_what_was_there(
    existing: bool, low: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, session = tmp_path / "guarded.onnx", guard(linear(), "blur")
    if existing:
        export(session, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise ExportError("no card", path)

    monkeypatch.setattr(sys.modules["purifier.exporters.onnx"], "make_card", fail)
    with pytest.raises(ExportError, match="no card"):
        export(session, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_in_the_place_of_the_card_is_not_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "guarded.onnx", _card.card_path(tmp_path / "guarded.onnx")
    other.write_text('{"mine": 1}')
    with pytest.raises(purifier.PurifierError, match=r"guarded.onnx.json exists and is no card of an exported file"):
        export(guard(linear(), "blur"), path)
    assert names(tmp_path) == ["guarded.onnx.json"] and other.read_text() == '{"mine": 1}'
    other.unlink()
    export(guard(linear(), "blur"), path)
    export(guard(linear(), "blur"), path)  # a card is replaced
