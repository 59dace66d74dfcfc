"""Guards and options that cannot be exported: an error and no file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purifier
from onnx_models import linear
from purifier.errors import ConfigError, ExportError, OutputError, PluginError
from purifier.guards.exporting import export
from purifier.guards.guard import guard


class Net(nn.Module):
    """A linear classifier of 1x8x8 images whose output takes any form."""

    def __init__(self, form: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(64, 5)
        self.form = form

    def forward(self, photos: Tensor) -> Any:
        return self.form(self.head(photos.flatten(1)))


class NeedsMore(Net):
    def forward(self, photos: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(photos) * scale


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Noted(Net):
    """Its state holds more than tensors, as that of quantised modules does."""

    def get_extra_state(self) -> torch.dtype:
        return torch.qint8


SHAPE = {"image_shape": (1, 8, 8)}


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Net(), {}, r"fixes the images' shape; give image_shape=\(C, H, W\)"),
        (Net(lambda logits: {"text": "a cat"}), SHAPE, "expected tensors in its output, got str"),
        (Net(lambda logits: {"photos": logits}), SHAPE, "both called 'photos'"),
        (NeedsMore(), SHAPE, "NeedsMore fails when called with only its image.*scale"),
        (Net(lambda logits: {"a": {"b": logits}, "a_b": 2 * logits}), SHAPE, "two of its outputs .* called 'a_b'"),
        (Net(lambda logits: {1: logits, "1": logits}), SHAPE, "two of its outputs would be called '1'"),
        (Net(lambda logits: None), SHAPE, r"torch cannot export Net \(TypeError: it returns no tensor"),
        (Net(lambda logits: ()), SHAPE, "it returns no tensor"),
        (
            Net(),
            {"image_shape": (3, 32, 32)},
            r"only its image, random \(2, 3, 32, 32\) \(.*mat1 and mat2 .*; if their size is wrong.*--image-shape",
        ),
        (
            Locked(),
            SHAPE,
            r"Locked and its purifier cannot be copied to the CPU \(TypeError: cannot pickle '_thread.lock'",
        ),
        (Net().to("meta"), SHAPE, r"cannot be copied to the CPU \(NotImplementedError: Cannot copy out of meta tensor"),
        (Noted(lambda logits: None), SHAPE, "it returns no tensor"),
    ],
)
def test_torch_guards_that_cannot_be_exported_are_errors(
    network: nn.Module, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(guard(network, "identity"), tmp_path / "guarded.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"opsets": 18}, ConfigError, "exporter 'onnx' has no option 'opsets'; its options are: image_shape, opset"),
        ({"opset": 11}, ConfigError, r"opset: expected an integer from 18 to \d\d, got 11"),
        ({"opset": 99}, ConfigError, "got 99"),
        ({"opset": "18"}, ConfigError, "got '18'"),
        ({"batches": ()}, ConfigError, "positive batch sizes"),
        ({"batches": 3}, ConfigError, "positive batch sizes, .*got 3"),
        ({"batches": (1, 10**9)}, ConfigError, r"a batch of images \(1000000000, 1, 8, 8\) .* has 6.4e\+10 values"),
        ({"image_shape": "1x28x28"}, ConfigError, r"image_shape: expected \(C, H, W\).*got '1x28x28'"),
        ({"image_shape": (28, 28)}, ConfigError, r"got \(28, 28\)"),
        ({"tolerance": "small"}, ConfigError, "tolerance: expected a number, 0 or more, got 'small'"),
        ({"format": None}, ConfigError, r"format: expected the name of an exporter \(.*onnx.*\), got None"),
        ({"format": "torch"}, ConfigError, "named like a file of the format 'onnx', but the format is 'torch'; give"),
        ({"format": "papyrus"}, PluginError, "no plugin 'papyrus'"),
    ],
)
def test_wrong_options_are_errors(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    vae = purifier.load("vae:image_shape=1x8x8,channels=4,latent=3")
    with pytest.raises(error, match=message):
        export(guard(Net(), vae), tmp_path / "guarded.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_bad_guards_and_paths_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a guard, got Net; make one with purifier.guard\(model"):
        export(Net(), tmp_path / "guarded.onnx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="path: expected the name of the file to write, got 5"):
        export(guard(linear(), "identity"), 5)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="it is a folder"):
        export(guard(linear(), "identity"), tmp_path)
