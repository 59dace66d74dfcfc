from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper
from shade import Shade

import onnx_models
import purifier
from purifier.errors import ClassifierError
from purifier.onnx import front_cache, guarded
from purifier.onnx.cache_folder import Shelf

pytestmark = pytest.mark.usefixtures("shelf")


@pytest.fixture
def grafts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The image inputs of the classifiers that were really grafted."""
    made: list[str] = []
    real = guarded.graft

    def counted(front: Any, classifier: Any, name: str, **options: Any) -> Any:
        made.append(name)
        return real(front, classifier, name, **options)

    monkeypatch.setattr(guarded, "graft", counted)
    return made


def with_a_wide_layer(scale: float = 1.0, bias: float = 0.0) -> ModelProto:
    """The first weight is large enough to be set aside, the second is not."""
    weight = np.random.default_rng(1).normal(size=(192, 50)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    return onnx_models.model_of(
        nodes,
        inputs=[("images", onnx_models.FLOAT, ["N", 3, 8, 8])],
        outputs=[("logits", onnx_models.FLOAT, ["N", 50])],
        initializers={"weight": scale * weight, "bias": np.float32([bias] * 50)},
    )


def logits(model: ModelProto, **options: Any) -> Any:
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    return purifier.guard(model, Shade(), **options).run(["logits"], {"images": images})[0]


def test_a_second_guard_is_not_grafted_and_has_the_weights_of_its_own_classifier(grafts: list[str]) -> None:
    first = logits(with_a_wide_layer())
    assert np.array_equal(logits(with_a_wide_layer()), first) and len(grafts) == 1
    scaled = logits(with_a_wide_layer(scale=2.0))
    assert len(grafts) == 1, "the graph does not hold the large weights"
    assert np.array_equal(scaled, logits(with_a_wide_layer(scale=2.0), cache=False)) and not np.array_equal(
        scaled, first
    )


@pytest.mark.parametrize("change", ["bias", "score", "on_bad_pixels", "image"])
def test_a_graph_is_grafted_anew_if_anything_changes_that_decides_it(change: str, grafts: list[str]) -> None:
    logits(with_a_wide_layer())
    model, options = with_a_wide_layer(bias=1.0 if change == "bias" else 0.0), {}
    if change == "image":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    if change in ("score", "on_bad_pixels"):
        options = {"score": {"score": True}, "on_bad_pixels": {"on_bad_pixels": "clamp"}}[change]
    found = logits(model, **options)
    assert len(grafts) == 2 and np.array_equal(found, logits(model, cache=False, **options))


def test_a_large_classifier_is_not_kept(grafts: list[str], shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_cache, "LARGEST", 100)
    assert np.array_equal(logits(with_a_wide_layer()), logits(with_a_wide_layer()))
    assert len(grafts) == 2 and [path.suffix for path, _ in shelf.files()] == [".front"]


@pytest.mark.parametrize("location", ["/etc/passwd", "set-aside"])
def test_a_kept_graft_that_reads_files_is_made_anew(location: str, grafts: list[str], shelf: Shelf) -> None:
    first = logits(with_a_wide_layer())
    (file,) = (path for path, _ in shelf.files() if path.suffix == ".graft")
    whole = file.read_bytes()
    model = ModelProto.FromString(whole.partition(b"\n")[2])
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    stored.ClearField("raw_data")
    stored.data_location = stored.EXTERNAL
    stored.external_data.add(key="location", value=location)
    file.write_bytes(front_cache._packed(model.SerializeToString(), file.stem))
    assert np.array_equal(logits(with_a_wide_layer()), first)
    assert len(grafts) == 2 and file.read_bytes() == whole


def test_a_classifier_whose_guard_is_kept_is_checked_all_the_same(tmp_path: Path, grafts: list[str]) -> None:
    path = tmp_path / "classifier.onnx"
    path.write_bytes(with_a_wide_layer().SerializeToString())
    purifier.guard(path, Shade())
    purifier.guard(path, Shade())
    assert len(grafts) == 1
    with purifier.onnx_limits(nodes=2), pytest.raises(ClassifierError, match="has 3 nodes"):
        purifier.guard(path, Shade())
