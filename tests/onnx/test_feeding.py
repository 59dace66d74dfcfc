"""Classifiers with more inputs than images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

import purifier
from onnx_models import FLOAT, model_of
from purifier.data.images import ImageData
from purifier.errors import ConfigError
from purifier.onnx.runtime import CPU

WEIGHT = np.random.default_rng(0).normal(size=(3 * 8 * 8, 2)).astype(np.float32)
GAIN, MASK = np.float32(2), np.array([[0, 3]])


def classifier() -> ModelProto:
    """(images @ weight) * gain + mask: ``gain`` is a number, ``mask`` has a row per image."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["plain"]),
        helper.make_node("Mul", ["plain", "gain"], ["scaled"]),
        helper.make_node("Cast", ["mask"], ["shift"], to=FLOAT),
        helper.make_node("Add", ["scaled", "shift"], ["logits"]),
    ]
    inputs: list[Any] = [("gain", FLOAT, []), ("images", FLOAT, ["N", 3, 8, 8]), ("mask", TensorProto.INT64, ["N", 2])]
    return model_of(nodes, inputs=inputs, outputs=[("logits", FLOAT, ["N", 2])], initializers={"weight": WEIGHT})


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, 8, 8), dtype=np.float32)


def logits(pixels: np.ndarray, gain: np.ndarray = GAIN, mask: np.ndarray = MASK) -> np.ndarray:
    return pixels.reshape(len(pixels), -1) @ WEIGHT * gain + mask


def test_a_session_takes_its_other_inputs_from_the_feed_where_run_is_not_given_them() -> None:
    guarded = purifier.guard(classifier(), "identity", feed={"gain": 2.0, "mask": MASK}, providers=[CPU])
    np.testing.assert_allclose(guarded.run(None, {"images": images()})[0], logits(images()), rtol=1e-4, atol=1e-4)
    wrapped = {"images": onnxruntime.OrtValue.ortvalue_from_numpy(images())}
    np.testing.assert_allclose(guarded.run(None, wrapped)[0], logits(images()), rtol=1e-4, atol=1e-4)
    other = {"images": images(), "gain": np.array(-1, np.float32)}
    np.testing.assert_allclose(guarded.run(None, other)[0], logits(images(), np.float32(-1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"gian": 1.0}, r"no other input 'gian'; its other inputs: gain float32 \(\), mask int64 \(N, 2\)"),
        ({"images": 1.0}, "no other input 'images'"),
        ({"gain": [1.0, 2.0]}, r"expected gain float32 \(\), got float64 \(2,\)"),
        ({"mask": [[0.5, 1]]}, r"expected mask int64 \(N, 2\), got float64 \(1, 2\)"),
        ({"mask": [[1, 2, 3]]}, r"got int64 \(1, 3\)"),
        ({"gain": "loud"}, r"expected gain float32 \(\), got <U4 \(\)"),
        ({"mask": [[1], [1, 2]]}, "feed: 'mask': expected an array, got list"),
        ([1.0], "feed: expected a dict from input names to arrays, got list"),
    ],
)
def test_values_that_do_not_fit_are_errors(feed: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        purifier.guard(classifier(), "identity", feed=feed)


def test_rows_for_another_number_of_images_are_an_error() -> None:
    guarded = purifier.guard(classifier(), "identity", feed={"gain": 1, "mask": np.zeros((2, 2), np.int64)})
    assert guarded.run(None, {"images": images(2)})[0].shape == (2, 2)
    with pytest.raises(ConfigError, match="feed: 'mask' has 2 rows for 3 images; give one row"):
        guarded.run(None, {"images": images(3)})


def test_a_feed_is_not_for_torch() -> None:
    with pytest.raises(ConfigError, match="feed: this option is for an ONNX classifier"):
        purifier.guard(torch.nn.Flatten(), "blur", feed={})
    with pytest.raises(ConfigError, match="feed: this option is for an ONNX classifier"):
        purifier.audit(torch.nn.Flatten(), data(), feed={})


def test_a_broken_graph_is_noticed_behind_a_gain(tmp_path: Path) -> None:
    """With a gain of 0 nothing in front of it would show."""
    guarded = purifier.guard(classifier(), "blur")
    stored = next(tensor for tensor in guarded.model.graph.initializer if tensor.name == "weight")
    stored.CopyFrom(numpy_helper.from_array(WEIGHT + 0.1, "weight"))
    with pytest.raises(purifier.PurifierError, match="differs from the guard"):
        purifier.export(guarded, tmp_path / "guarded.onnx")


def test_an_export_with_outputs_that_never_differ_says_so(tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    mute = purifier.export(purifier.guard(classifier(), "blur", feed={"gain": 0}), path)
    assert [note for note in mute.notes if "outputs were the same for all compared images" in note and "--feed" in note]
    loud = purifier.export(purifier.guard(classifier(), "blur", feed={"gain": 1}), path)
    assert not [note for note in loud.notes if "outputs were the same" in note]


def data(gain: float = 1.0) -> ImageData:
    """Images with the classifier's own answers as labels, for a gain and ``MASK``."""
    pixels = images(40)
    labels = logits(pixels, np.float32(gain)).argmax(1)
    return ImageData("own", torch.from_numpy(pixels), torch.from_numpy(labels))


@pytest.mark.parametrize("alone", [True, False])
def test_an_audit_asks_with_the_feed(alone: bool) -> None:
    feed = {"gain": np.float32(-1), "mask": MASK}
    if alone:
        report = purifier.audit(classifier(), data(-1), attacks=(), feed=feed, device="cpu")
    else:
        report = purifier.audit(purifier.guard(classifier(), "identity", feed=feed), data(-1), attacks=(), device="cpu")
    assert [row.result.share for row in report.rows if row.result] == [1.0] * len(report.rows)
    with pytest.raises(
        ConfigError, match=r"needs more than images: gain .*give values with feed=.*--feed gain=file.npy"
    ):
        purifier.audit(classifier(), data(), attacks=(), device="cpu")


def test_the_feed_on_the_command_line(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source, out, values = tmp_path / "classifier.onnx", tmp_path / "guarded.onnx", tmp_path / "gain.npy"
    onnx.save(classifier(), source)
    np.save(values, np.float32(0))
    given = ("export", "--classifier", source, "--purifier", "blur", "--out", out)
    code, shown, _ = command(*given, "--feed", f"gain={values}")
    assert code == 0
    assert "outputs were the same for all compared images" in shown
    for wrong, message in (
        ("gain", "--feed: expected NAME=FILE.npy, such as gain=gain.npy, got 'gain'"),
        (f"gain={source}", "cannot be read"),
        (f"loudness={values}", "no other input 'loudness'"),
    ):
        code, _, errors = command(*given, "--feed", wrong)
        assert code == 2
        assert message in errors


def test_the_tolerance_on_the_command_line(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source, out = tmp_path / "classifier.onnx", tmp_path / "guarded.onnx"
    onnx.save(classifier(), source)
    given = ("export", "--classifier", source, "--purifier", "blur", "--out", out)
    code, _, errors = command(*given, "--tolerance", "-1")
    assert code == 2
    assert "tolerance: expected a number, 0 or more, got -1.0" in errors
    assert command(*given, "--tolerance", "1e-3")[0] == 0


def test_limits_on_the_command_line(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source, out = tmp_path / "classifier.onnx", tmp_path / "guarded.onnx"
    onnx.save(classifier(), source)
    given = ("export", "--classifier", source, "--purifier", "identity", "--out", out)
    code, _, errors = command(*given, "--limit", "nodes=3")
    assert code == 2
    assert "has 5 nodes once its functions are inlined, the limit is 3" in errors
    assert "(--limit nodes=... on the command line)" in errors
    for wrong in ("nodes", "knots=3", "nodes=many", "nodes=-1"):
        code, _, errors = command(*given, "--limit", wrong)
        assert code == 2
        assert "--limit: expected NAME=NUMBER such as loop_steps=1e6" in errors
    assert command(*given, "--limit", "nodes=5", "--limit", "loop_steps=inf")[0] == 0
