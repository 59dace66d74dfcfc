"""Preprocessing and the checks of pixel space."""

from __future__ import annotations

import pytest
import torch

from purifier import Preprocessing
from purifier.data.pixels import check_pixels, check_scale, into_range, plain_range
from purifier.errors import ConfigError, PixelError

WAYS = [
    Preprocessing(),
    Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    Preprocessing(scale=255, mean=(103.9, 116.8, 123.7), channels="BGR"),
    Preprocessing(scale=255, layout="NHWC", dtype="uint8"),
    Preprocessing(mean=(0.5,), std=(0.5,), layout="NHWC", dtype="float16"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_into_range_clamps_but_keeps_the_gradient_at_the_bounds(dtype: torch.dtype) -> None:
    pixels = torch.tensor([-torch.inf, -3, -1e-3, 0, 0.5, 1, 1.001, 3, torch.inf, torch.nan], dtype=dtype)
    expected, there = pixels.clamp(0, 1), torch.tensor([0, 0, 1, 1, 1, 1, 1, 0, 0, 0], dtype=dtype)
    wanting = pixels.clone().requires_grad_()
    found = into_range(wanting)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(into_range(pixels), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.autograd.grad(found.nan_to_num().sum(), wanting)[0], there)
    assert torch.equal(torch.func.grad(lambda x: torch.vmap(into_range)(x).sum())(pixels[2:7]), there[2:7])


def test_into_range_can_be_plain_for_finite_differences() -> None:
    pixels = torch.tensor([-0.005, 0.0, 0.5, 1.0, 1.005], requires_grad=True)
    (usual,) = torch.autograd.grad(into_range(pixels).sum(), pixels)
    with plain_range():
        (plain,) = torch.autograd.grad(into_range(pixels).sum(), pixels)
    (again,) = torch.autograd.grad(into_range(pixels).sum(), pixels)
    assert usual.tolist() == again.tolist() == [1, 1, 1, 1, 1]
    assert plain.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_preprocessing_can_be_undone(way: Preprocessing) -> None:
    pixels = torch.rand(2, 3, 4, 5)
    images = way.to_classifier(pixels)
    assert images.shape == ((2, 4, 5, 3) if way.layout == "NHWC" else (2, 3, 4, 5))
    assert images.dtype == getattr(torch, way.dtype)
    tolerance = {"uint8": 0.5 / 255 + 1e-6, "float16": 2e-3}.get(way.dtype, 1e-6)
    torch.testing.assert_close(way.to_pixels(images), pixels, atol=tolerance, rtol=0)


def test_values_are_what_the_classifier_was_trained_on() -> None:
    caffe = Preprocessing(scale=255, mean=(103.0, 116.0, 123.0), channels="BGR")
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert caffe.to_classifier(red).flatten().tolist() == [-103.0, -116.0, 132.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "CHW"}, "layout must be NCHW or NHWC"),
        ({"dtype": "int4"}, "dtype must be one of"),
        ({"channels": "GBR"}, "channels must be RGB or BGR"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"scale": -1.0}, "scale and std must be positive"),
        ({"mean": (1.0, 2.0), "std": (1.0,)}, "same length"),
        ({"dtype": "uint8"}, "takes scale=255"),
        ({"mean": 0.5}, "mean must be a list or tuple of numbers, one per channel, up to 1e6, got 0.5"),
        ({"std": ("a",)}, "std must be a list or tuple of numbers"),
        ({"mean": (float("nan"),)}, "mean must be"),
        ({"scale": float("inf")}, "scale must be a number, up to 1e6, got inf"),
        ({"scale": None}, "scale must be a number"),
        ({"resize": 0}, r"resize must be a size such as 224 or \(224, 224\), got 0"),
        ({"crop": (224, 224, 3)}, r"crop must be a size .* got \(224, 224, 3\)"),
        ({"interpolation": "best"}, "interpolation must be one of nearest, .* got 'best'"),
    ],
)
def test_impossible_preprocessing_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**options)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.full((1, 1, 2, 2), float("nan")), r"expected values in \[0, 1\], got \[nan"),
        (torch.full((1, 1, 2, 2), 255.0), r"got \[255, 255\].*scale=255"),
        (torch.zeros(1, 2, 2), r"expected images \(N, 1, 2, 2\), got \(1, 2, 2\)"),
        (torch.zeros(1, 3, 2, 2), r"got \(1, 3, 2, 2\)"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "expected floats"),
    ],
)
def test_impossible_pixels_are_errors(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(PixelError, match=message):
        check_pixels(pixels, shape=(1, 2, 2))


WHITE_IS_255 = Preprocessing(scale=255)


def test_pixels_where_0_to_255_was_promised(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    pixels = images[0]
    with pytest.raises(
        PixelError,
        match=r"photo: expected values from 0 to 255.*got \[0, 1\].*pixels in \[0, 1\]: multiply them by 255",
    ):
        check_scale(pixels, WHITE_IS_255, name="photo")
    for halved in (torch.float16, torch.bfloat16):
        with pytest.raises(PixelError, match="multiply them by 255"):
            check_scale(pixels.to(halved), WHITE_IS_255, name="photo")


@pytest.mark.parametrize(
    "way", [Preprocessing(), Preprocessing(scale=255, std=(58.0,)), Preprocessing(scale=255, mean=(116.0,))], ids=str
)
def test_small_values_are_accepted_where_white_is_small(way: Preprocessing) -> None:
    check_scale(torch.full((1, 1, 2, 2), 0.5), way, name="photo")


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([[[[0.5, 1.5]]]]),
        torch.zeros(1, 1, 2, 2),
        torch.tensor([[[[0.0, 1.0]]]]),
        torch.ones(1, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(0, 1, 2, 2),
        torch.full((1, 1, 2, 2), float("nan")),
    ],
    ids=["above", "black", "dark", "uint8", "empty", "nan"],
)
def test_values_that_can_be_0_to_255_are_accepted(given: torch.Tensor) -> None:
    check_scale(given, WHITE_IS_255, name="photo")


def test_the_mean_must_match_the_channels() -> None:
    with pytest.raises(PixelError, match="expected 1 means or stds for images .*, got 3"):
        Preprocessing(mean=(0.1, 0.2, 0.3)).to_classifier(torch.zeros(1, 1, 2, 2))
