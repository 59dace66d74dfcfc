"""Read how a classifier wants its images from what torchvision, timm and Hugging Face say about it.

All forms are known by their attributes, so neither timm nor transformers is imported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..foreign_code import explained
from ..specs import build
from .image_processors import check_processor, from_processor
from .pixels import Preprocessing
from .transform_steps import interpolation_of, read_steps, size_of

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
EXPECTED = (
    "expected purifier.Preprocessing or a dict of its fields, 'imagenet', torchvision's weights, weights.transforms() "
    "or Compose, a timm data config, or a Hugging Face image processor"
)
TIMM_CROP_SHARE = 0.875


def read_preprocessing(value: Any) -> Preprocessing:
    """A ``Preprocessing`` from whatever describes one.

    Parameters
    ----------
    value
        None (images are pixels), a ``Preprocessing``, a dict of its fields, ``"imagenet"``; torchvision's ``Weights``
        member, its ``.transforms()``, or a ``Compose`` (v1 or v2) of ``ToTensor``, ``PILToTensor``, ``ToImage``,
        ``ToDtype``, ``ConvertImageDtype``, ``Resize``, ``CenterCrop`` and ``Normalize``; timm's data config or
        ``pretrained_cfg``; a Hugging Face image processor or its dict. Sizes found there go into ``resize`` and
        ``crop``.

    Raises
    ------
    ConfigError
        It is none of these, or does something to images that a ``Preprocessing`` cannot express.
    """
    if value is None:
        return Preprocessing()
    if isinstance(value, Preprocessing):
        return value
    with explained(f"preprocessing: this {type(value).__name__} cannot be read", ConfigError, EXPECTED):
        return _read(value)


def _read(value: Any) -> Preprocessing:
    if isinstance(value, str):
        if value.strip().lower() == "imagenet":
            return IMAGENET
        raise ConfigError(f"preprocessing: {EXPECTED}, got the text {value!r}")
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if not isinstance(value, type) and callable(getattr(value, "to_dict", None)):
        found = _from_mapping(value.to_dict())
        if hasattr(value, "image_mean"):
            check_processor(value, found)
        return found
    if callable(getattr(value, "transforms", None)) and hasattr(value, "meta"):
        return _read(value.transforms())
    if hasattr(value, "mean") and hasattr(value, "resize_size"):
        return _from_preset(value)
    steps = getattr(value, "transforms", None)
    if isinstance(steps, list | tuple):
        return read_steps(steps)
    if hasattr(value, "mean") and hasattr(value, "std"):
        return read_steps([value])
    raise ConfigError(f"preprocessing: {EXPECTED}, got {type(value).__name__}")


def _from_mapping(value: Mapping[str, Any]) -> Preprocessing:
    own = {field.name for field in dataclasses.fields(Preprocessing)}
    if value and set(value) <= own:
        numbers = {name: Preprocessing(mean=value[name]).mean for name in ("mean", "std") if name in value}
        return build(Preprocessing, {**value, **numbers}, what="preprocessing")
    if isinstance(value.get("data_config"), Mapping):  # Hugging Face's processor of timm's models
        return _from_mapping(value["data_config"])
    if {"image_mean", "do_normalize", "do_rescale"} & set(value):
        return from_processor(value)
    if {"mean", "std", "input_size"} <= set(value):
        return _from_timm(value)
    raise ConfigError(f"preprocessing: {EXPECTED}, got a dict with the keys {', '.join(map(str, value)) or 'none'}")


def _from_preset(preset: Any) -> Preprocessing:
    """torchvision's ``weights.transforms()``."""
    return Preprocessing(
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize=size_of(preset.resize_size),
        crop=size_of(getattr(preset, "crop_size", None)),
        interpolation=interpolation_of(getattr(preset, "interpolation", None)),
    )


def _from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """As ``timm.data.create_transform`` resizes and crops for evaluation."""
    size = [int(side) for side in config["input_size"]][1:]
    share = float(config.get("crop_pct") or TIMM_CROP_SHARE)
    larger = tuple(math.floor(side / share) for side in size)
    mode = config.get("crop_mode") or "center"
    known = len(size) == 2 and (mode == "squash" or (mode == "center" and size[0] == size[1]))
    return Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize=size_of(larger if mode == "squash" else larger[:1]) if known else None,
        crop=size_of(size) if known else None,
        interpolation=interpolation_of(config.get("interpolation") or "bicubic"),
    )
