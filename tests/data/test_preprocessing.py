"""Preprocessing from what torchvision, timm and Hugging Face say; the libraries' own transforms are the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.models import ResNet18_Weights, ViT_H_14_Weights
from torchvision.transforms import v2

from purifier import Preprocessing
from purifier.data.preprocessing import IMAGENET, read_preprocessing
from purifier.errors import ConfigError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def pixels_of(photo: Image.Image) -> Tensor:
    return v1.functional.to_tensor(photo)[None]


class Processor:
    """As Hugging Face's are called; ``change`` is what its settings do not say."""

    image_mean = MEAN

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def to_dict(self) -> dict[str, Any]:
        return {"do_normalize": True, "image_mean": MEAN, "image_std": STD}

    def __call__(self, images: Any, **options: object) -> dict[str, Tensor]:
        assert options == {"return_tensors": "pt", "do_resize": False, "do_center_crop": False}
        return {"pixel_values": self.change(IMAGENET.to_classifier(v1.functional.to_tensor(images)[None]))}


@pytest.mark.parametrize(
    ("way", "read"),
    [
        (ResNet18_Weights.DEFAULT, Preprocessing(MEAN, STD, resize=256, crop=224)),
        (ResNet18_Weights.DEFAULT.transforms(), Preprocessing(MEAN, STD, resize=256, crop=224)),
        (ViT_H_14_Weights.DEFAULT, Preprocessing(MEAN, STD, resize=518, crop=518, interpolation="bicubic")),
        ("imagenet", IMAGENET),
        (None, Preprocessing()),
        ({"mean": list(MEAN), "std": np.array(STD), "scale": 255, "crop": 32}, Preprocessing(MEAN, STD, 255, crop=32)),
        ({"layout": "NHWC", "resize": [32, 48]}, Preprocessing(layout="NHWC", resize=(32, 48))),
    ],
    ids=str,
)
def test_what_torchvision_and_people_write_is_read(way: object, read: Preprocessing) -> None:
    assert read_preprocessing(way) == read


@pytest.mark.parametrize(
    "given",
    [
        list(MEAN),
        np.array(MEAN),
        np.array(MEAN, np.float32)[:, None, None],
        torch.tensor(MEAN),
        torch.tensor(MEAN).view(1, 3, 1, 1),
        tuple(np.float32(value) for value in MEAN),
    ],
    ids=["list", "array", "broadcast", "tensor", "4d", "scalars"],
)
def test_numbers_may_be_lists_arrays_and_tensors(given: Any) -> None:
    found = Preprocessing(mean=given, std=given)
    assert found.mean == found.std == MEAN
    assert json.loads(json.dumps(found.mean)) == list(MEAN)
    assert hash(found) == hash(Preprocessing(mean=MEAN, std=MEAN))


PIPELINES: dict[str, Callable[[], Any]] = {
    "v1": lambda: v1.Compose([v1.Resize(32), v1.CenterCrop(32), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    "v1 in a Compose": lambda: v1.Compose(
        [v1.PILToTensor(), v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD)]
    ),
    "v2": lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
    "0 to 255": lambda: v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32), v2.Normalize([100.0], [50.0])]),
    "bytes": lambda: v2.Compose([v2.Resize((32, 32)), v2.ToImage()]),
    "0 to 255 only": lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=False)]),
    "halved": lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float16, scale=True)]),
    "bytes again": lambda: v2.Compose([v1.ToTensor(), v2.ToDtype(torch.uint8, scale=True)]),
    "plain": lambda: v1.Compose([v1.ToTensor()]),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_torchvision_give_what_was_read(name: str, photo: Image.Image) -> None:
    pipeline = PIPELINES[name]()
    expected = pipeline(photo)[None]
    way = read_preprocessing(pipeline)
    images = way.to_classifier(pixels_of(photo))
    assert images.dtype == expected.dtype
    torch.testing.assert_close(
        images, expected.as_subclass(Tensor), atol=2e-3 if way.dtype == "float16" else 1e-4, rtol=1e-5
    )


def test_sizes_in_pipelines_are_kept() -> None:
    steps = [
        v1.Resize(256, v1.InterpolationMode.BICUBIC),
        v1.CenterCrop((224, 192)),
        v1.ToTensor(),
        v1.Normalize(MEAN, STD),
    ]
    way = read_preprocessing(v1.Compose(steps))
    assert way == Preprocessing(MEAN, STD, resize=256, crop=(224, 192), interpolation="bicubic")
    assert read_preprocessing(v1.Normalize(MEAN, STD)) == IMAGENET
    assert read_preprocessing(v2.Compose([v2.Resize([256]), v2.Resize([96, 64])][1:])).resize == (96, 64)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([v1.RandomHorizontalFlip(), v1.ToTensor()], "cannot read the step RandomHorizontalFlip"),
        ([v1.Lambda(abs)], "cannot read the step Lambda"),
        ([v1.ToTensor(), v1.Normalize(MEAN, STD), v1.Normalize(MEAN, STD)], "expected one Normalize, got 2"),
        ([v1.CenterCrop(9), v1.Resize(9)], "expected one Resize before CenterCrop"),
        ([v1.CenterCrop(9), v1.CenterCrop(9)], "expected one CenterCrop, got 2"),
        ([v2.ToDtype(torch.int64)], "ToDtype to torch.int64: expected one of float32"),
        ([v1.ToTensor(), v2.ToDtype(torch.uint8)], "ToDtype to torch.uint8 cuts off values"),
    ],
)
def test_other_steps_are_refused_by_name(steps: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message + r".*; give purifier.Preprocessing\(mean"):
        read_preprocessing(v1.Compose(steps))


@pytest.mark.parametrize(
    ("way", "got"),
    [
        ("imagenet21k", "got the text 'imagenet21k'"),
        (3, "got int"),
        ({}, "got a dict with the keys none"),
        ({"mean": MEAN, "colour": 3}, "got a dict with the keys mean, colour"),
        (torch.nn.ReLU(), "got ReLU"),
    ],
    ids=str,
)
def test_anything_else_is_an_error(way: object, got: str) -> None:
    with pytest.raises(ConfigError, match=rf"expected purifier.Preprocessing .*timm.*Hugging Face.*{got}"):
        read_preprocessing(way)


@pytest.mark.parametrize(
    "way",
    [
        {"mean": MEAN, "std": STD, "input_size": 224},
        {"mean": 3, "std": STD, "input_size": (3, 224, 224)},
        {"do_rescale": True, "rescale_factor": "small"},
        {"do_normalize": True, "image_mean": "red"},
        {"do_rescale": True, "resample": 99},
        {"do_rescale": True, "size": {"height": "a", "width": 2}},
        {"mean": [[0.5], [0.5]]},
        {"mean": np.array(["a"])},
        {1: 2},
        Processor,
    ],
    ids=str,
)
def test_damaged_settings_are_an_error(way: Any) -> None:
    with pytest.raises(ConfigError, match="preprocessing"):
        read_preprocessing(way)


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({"input_size": (3, 224, 224), "crop_pct": 0.95}, {"resize": 235, "crop": (224, 224)}),
        ({"input_size": [3, 224, 224]}, {"resize": 256, "crop": (224, 224)}),
        ({"input_size": (3, 96, 64), "crop_pct": 1.0, "crop_mode": "squash"}, {"resize": (96, 64), "crop": (96, 64)}),
        ({"input_size": (3, 96, 96), "crop_mode": "border"}, {}),
    ],
    ids=str,
)
def test_data_configs_of_timm(config: dict[str, Any], read: dict[str, Any]) -> None:
    way = read_preprocessing({"mean": MEAN, "std": STD, "interpolation": "bicubic", **config})
    assert way == Preprocessing(MEAN, STD, interpolation="bicubic", **read)


def test_timm_itself_transforms_as_was_read(photo: Image.Image) -> None:
    timm = pytest.importorskip("timm")
    for name in ("resnet18", "vit_tiny_patch16_224", "inception_v3"):
        model = timm.create_model(name, pretrained=False)
        config = timm.data.resolve_data_config({}, model=model)
        transform = timm.data.create_transform(**config)
        way = read_preprocessing(config)
        assert way == read_preprocessing(model.pretrained_cfg)
        from_steps = read_preprocessing(transform)
        assert (way.resize, way.crop, way.interpolation) == (
            from_steps.resize,
            from_steps.crop,
            from_steps.interpolation,
        )
        expected = v1.Compose(transform.transforms[2:])(photo)[None]
        torch.testing.assert_close(way.to_classifier(pixels_of(photo)), expected)
    assert read_preprocessing(timm.get_pretrained_cfg("resnet18")) == read_preprocessing(
        timm.create_model("resnet18").pretrained_cfg
    )


PROCESSORS = {
    "ViTImageProcessor": {},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 384}},
    "CLIPImageProcessor": {},
    "EfficientNetImageProcessor": {"rescale_offset": True, "rescale_factor": 1 / 127.5},
    "MobileViTImageProcessor": {"size": {"shortest_edge": 288}},
    "BeitImageProcessor": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [64.0] * 3},
    "DeiTImageProcessor": {"do_normalize": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_hugging_face_itself_makes_what_was_read(name: str, photo: Image.Image) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)(**PROCESSORS[name])
    way = read_preprocessing(processor)
    assert way == read_preprocessing(processor.to_dict())
    unchanged = {"do_resize": False, "do_center_crop": False}
    expected = processor(photo, return_tensors="pt", **unchanged)["pixel_values"].float()
    torch.testing.assert_close(way.to_classifier(pixels_of(photo)), expected, atol=1e-4, rtol=1e-5)
    sized = processor(photo, return_tensors="pt")["pixel_values"].shape[-2:]
    assert way.resize is not None
    final = way.crop or way.resize
    assert tuple(sized) == (final if isinstance(final, tuple) else (final, final))


@pytest.mark.parametrize(
    ("config", "read"),
    [
        (
            {"do_normalize": True, "image_mean": MEAN, "image_std": STD, "size": 224, "resample": 3},
            Preprocessing(MEAN, STD, resize=(224, 224), interpolation="bicubic"),
        ),
        (
            {
                "do_normalize": True,
                "image_mean": MEAN,
                "image_std": STD,
                "size": 256,
                "do_center_crop": True,
                "crop_size": 224,
            },
            Preprocessing(MEAN, STD, resize=256, crop=224),
        ),
        (
            {"do_rescale": True, "size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            Preprocessing(resize=256, crop=(224, 224), interpolation="bicubic"),
        ),
        ({"do_rescale": False, "do_flip_channel_order": True}, Preprocessing(scale=255, channels="BGR")),
        ({"do_rescale": True, "rescale_factor": 0.5 / 255, "rescale_offset": True}, Preprocessing((1.0,), scale=0.5)),
    ],
    ids=str,
)
def test_dicts_of_image_processors(config: dict[str, Any], read: Preprocessing) -> None:
    assert read_preprocessing(config) == read


@pytest.mark.parametrize(("key", "made"), [("do_color_quantize", "tokens"), ("max_num_patches", "rows of patches")])
def test_a_processor_that_makes_no_images_is_an_error(key: str, made: str) -> None:
    with pytest.raises(ConfigError, match=rf"\({key}\) makes {made}.*not images; give purifier.Preprocessing"):
        read_preprocessing({key: 256, "do_normalize": False})


def test_a_processor_that_does_more_than_it_says_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Processor makes other values than its settings say, by up to [1-9]"):
        read_preprocessing(Processor(lambda images: images.flip(1)))
    assert read_preprocessing(Processor(lambda images: images)) == IMAGENET


def test_a_processor_that_cannot_be_tried_is_taken_at_its_word() -> None:
    def fail(_: Tensor) -> Tensor:
        raise ValueError("no such image")

    assert read_preprocessing(Processor(fail)) == IMAGENET
    assert read_preprocessing(Processor(lambda images: images[:, :, 1:])) == IMAGENET


@pytest.mark.parametrize(
    "more", [{"do_pad": True}, {"do_thumbnail": True}, {"do_center_crop": True, "crop_size": 256}], ids=str
)
def test_sizes_that_are_not_resize_then_crop_are_left_out(more: dict[str, Any]) -> None:
    way = read_preprocessing({"do_rescale": True, "size": {"height": 224, "width": 224}, **more})
    assert way.resize is None and way.crop is None
