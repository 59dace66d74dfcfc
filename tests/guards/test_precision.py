"""Guards and classifiers that are not float32, audited and exported."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

import purifier
from nets import trained
from purifier.data.loading import load_data
from purifier.errors import AuditError, ConfigError, ExportError


def test_a_double_guard_is_told_to_become_float(tmp_path: Path) -> None:
    guarded = purifier.guard(trained("net"), "blur").double()
    for attempt in (
        lambda: purifier.audit(guarded, "demo:4", attacks=()),
        lambda: purifier.export(guarded, tmp_path / "x.onnx", image_shape=(1, 28, 28)),
    ):
        with pytest.raises(ConfigError, match="weights are float64, expected float32; call .float()"):
            attempt()
    assert purifier.audit(guarded.float(), "demo:4", attacks=()).rows
    assert not list(tmp_path.iterdir())


def float64(classifier: nn.Module) -> purifier.GuardedModule:
    return purifier.guard(classifier.double(), "blur", preprocessing=purifier.Preprocessing(dtype="float64"))


def test_a_float64_classifier_that_says_so_is_exported_and_audited(tmp_path: Path) -> None:
    torch.manual_seed(0)
    guarded = float64(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    images = load_data("demo:4").batch(range(4))[0].double()
    purifier.export(guarded, tmp_path / "x.onnx", image_shape=(1, 28, 28))
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.type == "tensor(double)"
    (answer,) = session.run(None, {given.name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), guarded(images).detach(), atol=1e-5, rtol=1e-5)
    assert purifier.audit(guarded, "demo:4", attacks=()).rows


def test_a_float64_classifier_that_the_runtime_cannot_run_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"implementation for Conv.*export a float32 copy"):
        purifier.export(float64(trained("net")), tmp_path / "x.onnx", image_shape=(1, 28, 28))
    assert not list(tmp_path.iterdir())


def test_a_half_classifier_is_told_to_say_so() -> None:
    half = trained("net").half()
    with pytest.raises(AuditError, match=r"weights are float16: say so with preprocessing=.*dtype='float16'"):
        purifier.audit(half, "demo:4", attacks=())
    assert purifier.audit(half, "demo:4", attacks=(), preprocessing=purifier.Preprocessing(dtype="float16")).rows
