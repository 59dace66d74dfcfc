"""What training refuses, before it has done or written anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from purifier.data import ImageData
from purifier.errors import ConfigError, OutputError, PluginError, SpecError, TrainingError
from purifier.training import Progress, train

IMAGES = ImageData("eight", torch.arange(8 * 16).view(8, 1, 4, 4) / 127, torch.zeros(8, dtype=torch.int64))


def too_late(now: Progress) -> None:
    raise AssertionError(f"training went on to {now}")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"plugin": "vea"}, PluginError, "did you mean 'vae'"),
        ({"plugin": "identity"}, TrainingError, "'identity' has nothing to train"),
        ({"recipe": "magic"}, ConfigError, "no recipe 'magic'; the recipes are: elbo"),
        ({"recipe": "elbo:eps=0.1"}, ConfigError, "recipe 'elbo' has no option 'eps'"),
        ({"recipe": ""}, SpecError, "no plugin name"),
        (
            {"config": {"with": 1}},
            ConfigError,
            "purifier 'vae' has no option 'with'; its options are: image",
        ),
        ({"config": {"image_shape": "3x32x32"}}, ConfigError, "leave image_shape out"),
        ({"epochs": 0}, ConfigError, "epochs: expected 1 or more, got 0"),
        ({"batch_size": 0}, ConfigError, "batch_size: expected 1 or more, got 0"),
        ({"save_every": 0}, ConfigError, "save_every: expected 1 or more, got 0"),
        ({"lr": 0.0}, ConfigError, "lr: expected a positive number, got 0"),
        ({"lr": float("nan")}, ConfigError, "lr: expected a positive number, got nan"),
        ({"device": "abacus"}, ConfigError, "device 'abacus' cannot be used"),
        ({"out": "p.pt"}, OutputError, "expected a name ending in .safetensors"),
        ({"out": "folder.safetensors"}, OutputError, "it is a folder"),
        ({"out": "file/p.safetensors"}, OutputError, "cannot write .*choose a place"),
    ],
)
def test_refused_before_any_work(tmp_path: Path, options: dict[str, object], error: type[Exception], says: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("in the way")
    given = {"plugin": "vae", "out": "p.safetensors", **options}
    out = tmp_path / str(given.pop("out"))
    with pytest.raises(error, match=says):
        train(given.pop("plugin"), IMAGES, out, **given, progress=too_late)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]
