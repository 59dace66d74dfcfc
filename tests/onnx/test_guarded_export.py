"""Files of guards that reject images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rejecting_graphs import Net, bright, classes, classifier, plain, run, without_label

import purifier
from purifier.contracts.purifier import Purifier
from purifier.errors import ConfigError, ExportError
from purifier.guards.exporting import export
from purifier.guards.guard import guard
from scoring_purifiers import Bright, calibrated


def test_a_session_that_raises_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on_reject='raise' cannot be exported"):
        export(guard(classifier(), bright(), on_reject="raise"), tmp_path / "guarded.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("which", "options"),
    [
        (bright, {"on_reject": "flag"}),
        (bright, {"on_reject": "abstain", "abstain": 2, "score": True}),
        (classes, {"on_reject": "reclassify"}),
    ],
)
def test_torch_guards_and_sessions_export_the_same_graph(
    which: Callable[[], Purifier], options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "guarded.onnx"
    report = export(guard(Net(), which(), **options), path)
    one = run(plain(path))
    assert report.notes == ()
    export(guard(classifier(), which(), output="scores", **options), path)
    other = run(plain(path))
    assert list(one) == ["logits", *list(other)[3:]]
    for name, value in one.items():
        np.testing.assert_allclose(value, other["scores" if name == "logits" else name], atol=1e-4)
    metadata = plain(path).get_modelmeta().custom_metadata_map
    assert metadata["purifier.threshold"] == "0.5"
    assert metadata.get("purifier.on_reject") == options.get("on_reject")
    assert metadata.get("purifier.abstain") == ("2" if "abstain" in options else None)


@pytest.mark.parametrize("options", [{"on_reject": "flag"}, {"on_reject": "abstain"}])
def test_a_file_with_another_threshold_is_not_written(options: dict[str, Any], tmp_path: Path) -> None:
    session = guard(without_label(classifier()), bright(), output="scores", **options)
    values = [value for value in session.model.graph.initializer if numpy_helper.to_array(value).tolist() == 0.5]
    assert len(values) == 1
    values[0].CopyFrom(numpy_helper.from_array(np.float32(0.0), values[0].name))
    with pytest.raises(ExportError, match="'purifier_rejected': expected|'scores': NaN or infinity in different"):
        export(session, tmp_path / "guarded.onnx")
    assert not list(tmp_path.iterdir())


def test_images_at_the_threshold_are_skipped_with_a_note(tmp_path: Path) -> None:
    pixels, _ = purifier.onnx.front.example_images(bright(), purifier.Preprocessing(), (None, 1, 28, 28), count=1)
    edge = calibrated(Bright(), bright().score(pixels).item())
    report = export(guard(Net(), edge, on_reject="flag"), tmp_path / "guarded.onnx", batches=(1,))
    assert report.notes == (
        "1 of the compared images score within rounding of the threshold; whether they are rejected was not compared",
    )
    report = export(guard(Net(), calibrated(Bright(), 2.0), on_reject="flag"), tmp_path / "guarded.onnx")
    assert report.notes == ("all compared images were accepted; no rejected image was run",)


def test_the_shipped_purifiers_file_scores_and_rejects_real_images_as_torch_does(images, tmp_path: Path) -> None:
    vae, path = purifier.load("demo-plain"), tmp_path / "guarded.onnx"
    purifier.calibrate(vae, "demo", fpr=0.2)
    guarded = guard("demo", vae, on_reject="flag", score=True)
    assert export(guarded, path).notes == ()
    with torch.no_grad():
        expected = guarded(images[0])
    for found, wanted in zip(plain(path).run(None, {"images": images[0].numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert 0 < expected[2].sum() < 64
    # Nothing is encoded or decoded twice for the score.
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    modules = [type(part).__name__ for part in guarded.modules()]
    assert kinds.count("Conv") == modules.count("Conv2d")
    assert kinds.count("ConvTranspose") == modules.count("ConvTranspose2d")
