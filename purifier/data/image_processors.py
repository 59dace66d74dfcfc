"""Read a Hugging Face image processor as a ``Preprocessing``, and compare the two on an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, PixelError
from ..foreign_code import Attempt, is_exception
from .pixels import Preprocessing
from .transform_steps import interpolation_of, size_of

PIXEL_FACTOR = 1 / 255
CONVNEXT_WARPS_FROM = 384
"""From this size on ConvNeXt's processor resizes without a crop, whatever the proportions."""
NO_IMAGES = {"do_color_quantize": "tokens of colours", "max_num_patches": "rows of patches"}
ADVICE = "give purifier.Preprocessing(mean=..., std=..., scale=..., channels=...)"
TRIAL_SIDE = 64
TRIAL_TOLERANCE = 1e-3


def from_processor(config: Mapping[str, Any]) -> Preprocessing:
    """The pixel values that an image processor with these settings makes.

    Raises
    ------
    ConfigError
        It makes something else than images.
    """
    for key, made in NO_IMAGES.items():
        if config.get(key):
            raise ConfigError(f"preprocessing: this image processor ({key}) makes {made}, not images; {ADVICE}")
    factor = float(config.get("rescale_factor") or PIXEL_FACTOR) if config.get("do_rescale", True) else 1.0
    scale = 255 * factor
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    # MobileViT's processor, which swaps channels, has a mean that it does not use.
    if config.get("do_normalize", "image_mean" in config and "do_flip_channel_order" not in config):
        mean, std = _per_channel(config.get("image_mean")), _per_channel(config.get("image_std"))
    if config.get("rescale_offset") and config.get("do_rescale", True):  # EfficientNet: pixel * factor - 1
        mean = tuple(value + 1 for value in mean) or (1.0,)
    if config.get("include_top"):  # EfficientNet divides by the standard deviation once more
        again = _per_channel(config.get("image_std"))
        std = tuple(first * second for first, second in zip(std, again, strict=True)) if std else again
    resize, crop = _sizes(config)
    return Preprocessing(
        mean=mean,
        std=std,
        scale=scale,
        channels="BGR" if config.get("do_flip_channel_order") else "RGB",
        resize=resize,
        crop=crop,
        interpolation=interpolation_of(config.get("resample")),
    )


def _sizes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """``resize`` and ``crop``; None if it does something else, such as padding, or cropping first."""
    if config.get("do_pad") or config.get("do_thumbnail"):
        return None, None
    size = config.get("size") if config.get("do_resize", True) else None
    crop = size_of(config.get("crop_size")) if config.get("do_center_crop") else None
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if config.get("crop_pct") and shortest and "do_center_crop" not in config:  # ConvNeXt
        if shortest >= CONVNEXT_WARPS_FROM:
            return (shortest, shortest), None
        return int(shortest / config["crop_pct"]), (shortest, shortest)
    if isinstance(size, int) and crop is None:  # of a file from before sizes were dicts
        size = (size, size)
    resize = size_of(size)
    return (resize, crop) if crop is None or resize is None or _least(crop) <= _least(resize) else (None, None)


def _least(size: int | tuple[int, int]) -> int:
    return min(size) if isinstance(size, tuple) else size


def _per_channel(values: Any) -> tuple[float, ...]:
    if values is None:
        return ()
    return (float(values),) if isinstance(values, int | float) else Preprocessing(mean=values).mean


def check_processor(processor: Any, way: Preprocessing) -> None:
    """Raise ``ConfigError`` if an image processor, called on an image, gives other values than ``way``.

    Some do things that their settings do not say, such as swapping channels. One that cannot be called like that is
    taken at its word.
    """
    image = np.random.default_rng(0).integers(0, 256, (TRIAL_SIDE, TRIAL_SIDE, 3), dtype=np.uint8)
    with Attempt() as attempt, torch.no_grad():
        made = processor(images=image, return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]
    if attempt.error is not None:
        if not is_exception(attempt.error):
            raise attempt.error
        return
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with Attempt((ConfigError, PixelError)) as attempt:
        expected = way.to_classifier(pixels)
    if attempt.error is not None or not isinstance(made, Tensor) or made.shape != expected.shape:
        return  # for images of another kind, or resized all the same
    difference = float((made.float() - expected.float()).abs().max())
    if not difference <= TRIAL_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ConfigError(
            f"preprocessing: {type(processor).__name__} makes other values than its settings say, by up to "
            f"{difference:.3g}; {ADVICE}"
        )
