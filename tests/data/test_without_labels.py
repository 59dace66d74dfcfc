"""Data whose labels are left out: the same images, labelled by nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purifier.data.images import UNLABELLED
from purifier.data.loading import load_data
from purifier.errors import ConfigError


@pytest.mark.parametrize("kind", ["folder", "npz", "demo"])
def test_labels_can_be_left_out(tmp_path: Path, kind: str) -> None:
    pixels, labels = load_data("demo:6").batch(range(6))
    values = (pixels * 255).round().to(torch.uint8).numpy()
    np.savez(tmp_path / "set.npz", images=values, labels=labels.numpy())
    for place, image in enumerate(values):
        path = tmp_path / "photos" / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    spec = {"folder": f"folder:{tmp_path / 'photos'}:5", "npz": f"npz:{tmp_path / 'set.npz'}:5", "demo": "demo:5"}[kind]
    labelled, unlabelled = load_data(spec), load_data(spec, labels=False)
    assert labelled.labelled and not unlabelled.labelled and unlabelled.classes == ()
    assert torch.equal(unlabelled.batch(range(5))[0], labelled.batch(range(5))[0])
    assert unlabelled.labels.tolist() == [UNLABELLED] * 5
    if kind == "folder":
        with pytest.raises(ConfigError, match="classes .* says what labels mean, but labels are left out"):
            load_data(spec, labels=False, classes=["a", "b"])
