"""Guards and classifiers that are not float32, audited and exported."""

from __future__ import annotations

from pathlib import Path

import pytest

import purifier
from nets import trained
from purifier.errors import AuditError, ConfigError


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


def test_a_half_classifier_is_told_to_say_so() -> None:
    half = trained("net").half()
    with pytest.raises(AuditError, match=r"weights are float16: say so with preprocessing=.*dtype='float16'"):
        purifier.audit(half, "demo:4", attacks=())
    assert purifier.audit(half, "demo:4", attacks=(), preprocessing=purifier.Preprocessing(dtype="float16")).rows
