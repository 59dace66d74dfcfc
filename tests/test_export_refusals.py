"""What cannot be exported: an error that says why, and no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purifier
from onnx_models import linear
from purifier.errors import ConfigError, ExportError, OutputError, PluginError
from purifier.exporting import export
from purifier.guard import guard


class Net(nn.Module):
    """A linear classifier of 1x8x8 images whose answer takes any form."""

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


SHAPE = {"image_shape": (1, 8, 8)}


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Net(), {}, r"fixes the images' shape; give image_shape=\(C, H, W\)"),
        (Net(lambda logits: {"text": "a cat"}), SHAPE, "its output holds a str"),
        (Net(lambda logits: {"photos": logits}), SHAPE, "both called 'photos'"),
        (NeedsMore(), SHAPE, "cannot export NeedsMore from its image alone.*scale"),
    ],
)
def test_a_torch_guard_that_cannot_be_exported_says_why(
    network: nn.Module, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(guard(network, "identity"), tmp_path / "guarded.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"opsets": 18}, ConfigError, "exporter 'onnx' has no option 'opsets'; its options are: image_shape, opset"),
        ({"opset": 11}, ConfigError, "opset: expected 18 or more, got 11"),
        ({"batches": ()}, ConfigError, "positive batch sizes"),
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


def test_only_guards_are_exported_and_only_to_places_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"what purifier.guard\(model, purifier\) returns, got Net"):
        export(Net(), tmp_path / "guarded.onnx")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="it is a folder"):
        export(guard(linear(), "identity"), tmp_path)
