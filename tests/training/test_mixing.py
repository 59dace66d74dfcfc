"""CutMix: what is pasted, the labels that follow, and that images without it stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import purifier
from nets import trained
from purifier.data.loading import load_data
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from purifier.training.mixing import Labels, cut_mixed

COUNT = 400


def test_a_rectangle_of_the_image_before_is_pasted_and_its_label_has_its_share() -> None:
    values = torch.arange(COUNT, dtype=torch.float32)
    pixels = values[:, None, None, None].expand(-1, 2, 20, 30)
    mixed, labels = cut_mixed(pixels, values.long() % 8, SampleGenerator(3, range(COUNT)), 0.5)
    own = mixed == pixels
    assert ((mixed == pixels.roll(1, 0)) | own).all() and torch.equal(own[:, 0], own[:, 1])
    pasted = ~own[:, 0]
    for image in pasted:
        rows, columns = image.any(1), image.any(0)
        assert torch.equal(image, rows[:, None] & columns)
        for line in (rows, columns):
            assert line.int().diff().ne(0).sum() <= 2
    assert labels.kept is not None
    torch.testing.assert_close(labels.kept, own[:, 0].float().mean((1, 2)))
    assert 0.4 < pasted.any(2).any(1).float().mean() < 0.55
    assert labels.kept.min() < 0.3
    target = labels.target(8)
    torch.testing.assert_close(target.sum(1), torch.ones(COUNT))
    places = torch.arange(COUNT)
    torch.testing.assert_close(target[places, labels.own], labels.kept)
    torch.testing.assert_close(target[places, labels.own.roll(1)], 1 - labels.kept)
    assert torch.equal(labels.larger, torch.where(labels.kept < 0.5, labels.own.roll(1), labels.own))


def test_nothing_is_mixed_or_drawn_at_a_share_of_0() -> None:
    pixels, streams = torch.rand(4, 1, 8, 8), SampleGenerator(0, range(4))
    mixed, labels = cut_mixed(pixels, torch.arange(4), streams, 0.0)
    assert mixed is pixels and labels == Labels(labels.own)
    assert torch.equal(labels.target(9), torch.arange(4)) and torch.equal(labels.larger, torch.arange(4))
    fresh = SampleGenerator(0, range(4))
    assert torch.equal(streams.uniform((2,), pixels), fresh.uniform((2,), pixels))


@pytest.mark.parametrize("options", ["distillation=0", "distillation=0.5", "distillation=1", "loss=trades", "clean=1"])
def test_a_purifier_learns_from_mixed_images(options: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"config": {"channels": 4, "latent": 8, "spatial": True}, "classifier": trained("net")}
    data = load_data("demo:60")
    made = [
        purifier.train("vae", data, tmp_path / f"{share}.safetensors", recipe=f"robust:{options},cutmix={share}",
                       epochs=1, batch_size=20, **given)
        for share in (0, 1)
    ]  # fmt: skip
    pixels, _ = data.batch(range(5))
    assert not torch.equal(made[0].purify(pixels), made[1].purify(pixels))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("cutmix=1.5", r"cutmix must be a share of the images in \[0, 1\], got 1.5"),
        ("cutmix=nan", "cutmix must be a share"),
        ("cutmix=0.5,bounds=0.1", "bounds hold for one label; leave out cutmix or bounds"),
    ],
)
def test_what_cannot_be_mixed(options: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        purifier.train("vae", "demo:20", tmp_path / "p.safetensors", recipe=f"robust:{options}", classifier="demo")
