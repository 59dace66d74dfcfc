"""Resizing and cropping, against torchvision's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from purifier.data.framing import Framing, read_framing
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError

SIZES = [(40, 30), (31, 53), (64, 64), (200, 33)]


def photo(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "crop"), [(32, 28), (29, 28), ((32, 40), (20, 31)), (32, None), (None, 25)])
def test_images_are_framed_as_torchvision_does(size: tuple[int, int], resize: object, crop: object) -> None:
    steps = [transforms.Resize(resize)] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    expected = transforms.Compose(steps)(photo(size))
    framing = read_framing(resize, crop)
    found = framing(photo(size))
    assert np.array_equal(np.array(found), np.array(expected))
    assert framing.framed(size) == expected.size and framing.covers(size)
    assert read_framing(preprocessing=transforms.Compose([*steps, transforms.ToTensor()])) == framing


@pytest.mark.parametrize("interpolation", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
def test_sizes_come_from_torchvisions_presets(interpolation: InterpolationMode) -> None:
    preset = ImageClassification(crop_size=24, resize_size=30, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3)
    framing = read_framing(preprocessing=preset)
    assert framing == Framing(30, (24, 24), interpolation.value)
    found = np.array(framing(photo((50, 61)))).transpose(2, 0, 1) / 255
    assert np.array_equal(found.astype(np.float32), preset(photo((50, 61))).numpy())


def test_given_sizes_replace_those_of_the_preprocessing() -> None:
    preset = ImageClassification(crop_size=24, resize_size=30)
    assert read_framing(16, None, preset) == Framing(16)
    assert read_framing("16", "8x10", preset) == Framing(16, (8, 10))


@pytest.mark.parametrize("preprocessing", [None, {"mean": (0.5,)}, transforms.Normalize((0,), (1,)), "imagenet"])
def test_a_preprocessing_without_sizes_leaves_images_as_they_are(preprocessing: object) -> None:
    framing = read_framing(preprocessing=preprocessing)
    assert framing == Framing()
    assert framing.framed((7, 9)) == (7, 9)


@pytest.mark.parametrize("size", [0, -3, "big", "3x", "3x4x5", (1, 2, 3), 2.5, True, "99999", ()])
def test_sizes_that_cannot_be_read(size: object) -> None:
    for name in ("resize", "crop"):
        with pytest.raises(ConfigError, match=f"{name}: expected a number of pixels from 1 to 16384, or height and"):
            read_framing(**{name: size})


def test_sizes_come_from_a_preprocessing() -> None:
    assert read_framing(preprocessing=Preprocessing(resize=30, crop=24)) == Framing(30, (24, 24))
    known = Preprocessing(resize=(9, 7), crop=(5, 6), interpolation="lanczos")
    assert read_framing(preprocessing=known) == Framing((9, 7), (5, 6), "lanczos")
    timm = {
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0,) * 3,
        "std": (1,) * 3,
    }
    assert read_framing(preprocessing=timm) == Framing(256, (224, 224), "bicubic")
