from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

import purifier
from onnx_models import FLOAT, linear, model_of
from purifier.contracts import checkpoint
from purifier.data.pixels import Preprocessing
from purifier.onnx import loaded_code


def test_the_command_writes_and_shows_a_verified_file(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source, path = tmp_path / "classifier.onnx", tmp_path / "guarded.onnx"
    wanted = ["--preprocessing", "mean=0.5 0.4 0.3,std=0.25 0.25 0.25", "--image-shape", "3x8x8", "--score"]
    onnx.save(linear(), source)
    code, shown, _ = command("export", "--classifier", source, "--purifier", "blur:sigma=2", "--out", path, *wanted)
    assert code == 0
    assert f"{path}  0.0" in shown
    assert "opset 18" in shown
    pixels = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.25,) * 3).to_classifier(pixels)
    scores = session.run(["purifier_score"], {"images": images.numpy()})[0]
    np.testing.assert_allclose(scores, purifier.load("blur:sigma=2").score(pixels), atol=1e-5)


@pytest.mark.parametrize("which", ["classifier.onnx", "blurred.safetensors"])
def test_a_file_that_the_guard_is_read_from_is_not_replaced(
    which: str, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source, filter_ = tmp_path / "classifier.onnx", tmp_path / "blurred.safetensors"
    onnx.save(linear(), source)
    checkpoint.save(purifier.load("blur"), filter_)
    before = (tmp_path / which).read_bytes()
    words = ["--classifier", source, "--purifier", filter_, "--image-shape", "3x8x8", "--out", tmp_path / which]
    code, _, error = command("export", *words)
    assert code == 2 and "the guard is read from that file; give another name" in error
    assert (tmp_path / which).read_bytes() == before


def test_no_cache_keeps_nothing(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_code, "STARTED", math.inf)  # source files that were just edited count as old
    monkeypatch.setenv("PURIFIER_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "classifier.onnx"
    onnx.save(linear(), source)
    words = ["export", "--classifier", source, "--purifier", "blur", "--out", tmp_path / "guarded.onnx"]
    assert command(*words, "--no-cache")[0] == 0 and not (tmp_path / "cache").exists()
    assert command(*words)[0] == 0 and any((tmp_path / "cache" / "fronts").iterdir())


@pytest.mark.parametrize("input", ["right", "1"])
def test_the_image_input_is_chosen_where_several_can_be(
    input: str, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source, path = tmp_path / "classifier.onnx", tmp_path / "guarded.onnx"
    value = ("N", 3, 8, 8)
    model = model_of(
        [helper.make_node("Sub", ["left", "right"], ["y"])],
        inputs=[("left", FLOAT, value), ("right", FLOAT, value)],
        outputs=[("y", FLOAT, value)],
    )
    onnx.save(model, source)
    given = ("export", "--classifier", source, "--purifier", "blur:sigma=2", "--out", path)
    code, _, errors = command(*given)
    assert code == 2
    assert "choose one with --input" in errors
    assert command(*given, "--input", input)[0] == 0
    pixels = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"left": pixels.numpy(), "right": pixels.numpy()})[0]
    np.testing.assert_allclose(found, pixels - purifier.load("blur:sigma=2").purify(pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--image-shape", "28x28", "--image-shape: expected CxHxW such as 1x28x28, got '28x28'"),
        ("--preprocessing", "means=0.5", "--preprocessing has no option 'means'"),
        ("--preprocessing", "mean=grey", "option 'mean': expected"),
        ("--classifier", "nowhere.onnx", "no file nowhere.onnx"),
        ("--input", "photo", "the classifier has no input 'photo'; its inputs: 0: images"),
    ],
)
def test_bad_input_to_the_command_ends_in_exit_code_2(
    option: str, value: str, message: str, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source = tmp_path / "classifier.onnx"
    onnx.save(linear(), source)
    given = {"--classifier": source, "--purifier": "identity", "--out": tmp_path / "out.onnx", option: value}
    code, _, errors = command("export", *(word for pair in given.items() for word in pair))
    assert code == 2
    assert errors.startswith("error: ")
    assert message in errors
    assert not (tmp_path / "out.onnx").exists()


def test_rejection_and_noise_on_the_command_line(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source, known, path = tmp_path / "classifier.onnx", tmp_path / "blur.safetensors", tmp_path / "guarded.onnx"
    onnx.save(linear(), source)
    blur = purifier.load("blur")
    blur.provenance = {
        "calibration": {"fpr": 0.1, "threshold": 0.05, "data": "x", "count": 9, "quantiles": [0.0] * 101}
    }
    purifier.save(blur, known)
    given = ("export", "--classifier", source, "--purifier", known, "--out", path, "--image-shape", "3x8x8")
    assert command(*given, "--on-reject", "abstain", "--abstain", "4")[0] == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images[1] *= 0.1
    (logits,) = session.run(None, {"images": images.numpy()})
    assert logits[0].tolist() == [float("-inf")] * 4 + [0.0]
    assert np.isfinite(logits[1]).all()
    images[0, 0, 0, 0] = float("nan")
    for options, bad in (
        ([], [float("nan")] * 5),
        (["--on-reject", "abstain", "--abstain", "4", "--on-bad-pixels", "reject"], [float("-inf")] * 4 + [0.0]),
    ):
        assert command(*given, *options)[0] == 0
        (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
        np.testing.assert_array_equal(logits[0], bad)
        assert np.isfinite(logits[1]).all()
    for options, message in (
        (["--on-bad-pixels", "reject"], "--on-bad-pixels reject needs --on-reject flag or abstain, got 'ignore'"),
        (["--on-reject", "panic"], "--on-reject must be one of ignore"),
        (["--abstain", "1"], "abstain needs --on-reject abstain"),
        (["--noise", "input"], "Blur draws no noise"),
    ):
        code, _, errors = command(*given, *options)
        assert code == 2
        assert message in errors
    vae = "vae:image_shape=3x8x8,channels=4,latent=3,sample=true"
    given = (*given[:4], vae, *given[5:])
    code, shown, _ = command(*given, "--noise", "input")
    assert code == 0
    assert "takes its draw() as the input purifier_noise" in shown
    second = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[1]
    assert (second.name, second.shape) == ("purifier_noise", ["N", 3])
