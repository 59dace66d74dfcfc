"""Pixel space, the only image space inside the project: float32, NCHW, RGB, values in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, PixelError
from .bad_pixels import RANGE_SLACK, check_range
from .reading import bounds_of, capturing, tracing

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "uint8": torch.uint8,
}
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's, in the order of its numbers, which Hugging Face stores."""
_plain = ContextVar("plain", default=False)


@dataclass(frozen=True)
class Preprocessing:
    """How a classifier expects its images: ``(pixels * scale - mean) / std`` in its dtype, layout and channel order.

    Parameters
    ----------
    mean, std
        Per channel, in units of ``scale`` and in the classifier's own channel order; empty means 0 and 1. Lists, arrays
        and tensors become tuples.
    scale
        The value of a white pixel before mean and std: 1, or 255 for 0-255 classifiers.
    layout
        ``NCHW`` or ``NHWC``.
    dtype
        A key of ``DTYPES``; uint8 images are rounded, and need scale 255 and no mean or std.
    channels
        ``RGB`` or ``BGR``, the classifier's colour order.
    resize
        How images are resized when they are read: an int for the shorter side, or (H, W). None if nothing is known. A
        guard does not resize: ``resize``, ``crop`` and ``interpolation`` are for whoever reads images from files.
    crop
        The size (H, W) of the centre that is cut out after resizing; an int means a square.
    interpolation
        One of ``INTERPOLATIONS``.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 1.0
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: str = "float32"
    channels: Literal["RGB", "BGR"] = "RGB"
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _as_numbers(getattr(self, name)))
        if self.dtype not in DTYPES:
            raise ConfigError(f"preprocessing: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.layout not in ("NCHW", "NHWC"):
            raise ConfigError(f"preprocessing: layout must be NCHW or NHWC, got {self.layout!r}")
        if self.channels not in ("RGB", "BGR"):
            raise ConfigError(f"preprocessing: channels must be RGB or BGR, got {self.channels!r}")
        for name, numbers in (("mean", self.mean), ("std", self.std), ("scale", (self.scale,))):
            if not isinstance(numbers, tuple) or not all(isinstance(x, int | float) and abs(x) <= 1e6 for x in numbers):
                wanted = "a number" if name == "scale" else "a list or tuple of numbers, one per channel"
                raise ConfigError(f"preprocessing: {name} must be {wanted}, up to 1e6, got {getattr(self, name)!r}")
        if not self.scale > 0 or any(not value > 0 for value in self.std):
            raise ConfigError(f"preprocessing: scale and std must be positive, got {self.scale} and {self.std}")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ConfigError(f"preprocessing: mean and std must have the same length, got {self.mean} and {self.std}")
        if self.dtype == "uint8" and (self.mean or self.std or self.scale != 255):
            raise ConfigError("preprocessing: a uint8 classifier takes scale=255 and no mean or std")
        self._check_reading()

    def _check_reading(self) -> None:
        for name in ("resize", "crop"):
            size = getattr(self, name)
            sides = size if isinstance(size, tuple) and len(size) == 2 else (size,)
            if size is not None and not all(type(side) is int and side > 0 for side in sides):
                raise ConfigError(f"preprocessing: {name} must be a size such as 224 or (224, 224), got {size!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"preprocessing: interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}"
            )

    def to_classifier(self, pixels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Pixels (N, C, H, W) -> the classifier's images, or in another ``dtype``. Differentiable unless uint8."""
        images = pixels
        if self.channels == "BGR":
            images = images.flip(1)
        if self.scale != 1:
            images = images * self.scale
        if self.mean:
            images = images - _per_channel(self.mean, images)
        if self.std:
            images = images / _per_channel(self.std, images)
        if self.dtype == "uint8":
            images = images.round()
        if self.layout == "NHWC":
            images = images.permute(0, 2, 3, 1)
        return images.to(dtype or DTYPES[self.dtype])

    def to_pixels(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The inverse of ``to_classifier``, without clamping."""
        pixels = images.permute(0, 3, 1, 2) if self.layout == "NHWC" else images
        pixels = pixels.to(dtype)
        if self.std:
            pixels = pixels * _per_channel(self.std, pixels)
        if self.mean:
            pixels = pixels + _per_channel(self.mean, pixels)
        if self.scale != 1:
            pixels = pixels / self.scale
        if self.channels == "BGR":
            pixels = pixels.flip(1)
        return pixels


def into_range(pixels: Tensor) -> Tensor:
    """Pixels clamped to [0, 1], with the gradient of the identity up to and slightly beyond the bounds.

    ``clamp`` has no gradient beyond its bounds, where rounding can put black or white pixels, and in torch 2.15 (unlike
    2.11) none at the bounds either: attackers would get no gradient for such pixels, and a guard would look stronger.
    """
    clamped = pixels.clamp(0, 1)
    if torch.onnx.is_in_onnx_export():
        return clamped
    if torch.compiler.is_exporting():  # a program keeps no detach, and may be attacked too
        return torch.where(pixels < 0, 0.0, torch.where(pixels > 1, 1.0, pixels))
    slack = 0.0 if _plain.get() else RANGE_SLACK
    near = (pixels >= -slack) & (pixels <= 1 + slack)
    return clamped.detach() + torch.where(near, pixels - pixels.detach(), 0)


@contextmanager
def plain_range() -> Iterator[None]:
    """Within this block ``into_range`` has no gradient beyond the bounds, as finite differences see it.

    At the bounds it keeps the gradient of the identity, which is the slope towards the inside.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def check_pixels(pixels: Tensor, *, name: str = "pixels", shape: Sequence[int | None] | None = None) -> None:
    """Raise ``PixelError`` unless ``pixels`` are floats (N, C, H, W) in [0, 1], of ``shape`` if given."""
    check_shape(pixels, name=name, shape=shape)
    if not pixels.dtype.is_floating_point:
        raise PixelError(f"{name}: expected floats in [0, 1], got {pixels.dtype}")
    check_range(pixels, name=name)


def check_shape(pixels: Tensor, *, name: str, shape: Sequence[int | None] | None = None) -> None:
    """Raise ``PixelError`` unless ``pixels`` is (N, C, H, W), of ``shape`` (C, H, W) if given, None for any size."""
    if pixels.ndim != 4 or (shape is not None and not fits(pixels.shape[1:], shape)):
        sizes = [letter if size is None else str(size) for letter, size in zip("CHW", shape or [None] * 3, strict=True)]
        wanted = f"(N, {', '.join(sizes)})"
        advice = "resize them, or give their layout with preprocessing="
        if pixels.ndim == 3:
            advice = "for a single image, pass images[None]"
        elif pixels.ndim == 4 and shape is not None and pixels.shape[1] != shape[0]:
            advice = f"they have {pixels.shape[1]} channels, not {shape[0]} (or give their layout with preprocessing=)"
        raise PixelError(f"{name}: expected images {wanted}, got {tuple(pixels.shape)}; {advice}")


def fits(shape: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether two shapes agree where both are known: torch has symbols for the sizes that it traces."""
    known = [(got, want) for got, want in zip(shape, wanted, strict=False) if type(got) is int and type(want) is int]
    return len(shape) == len(wanted) and all(got == want for got, want in known)


def check_scale(images: Tensor, preprocessing: Preprocessing, *, name: str) -> None:
    """Raise ``PixelError`` if float images declared as 0-255 can only be pixels in [0, 1].

    Parameters
    ----------
    images
        In the classifier's format, before ``Preprocessing.to_pixels``. A batch within [0, 1] that is not all 0
        or 1 must be pixels. With mean and std, correct images can lie there too, so nothing is checked.
    """
    if preprocessing.scale < 255 or preprocessing.mean or preprocessing.std:
        return
    bounds = bounds_of(images) if images.dtype.is_floating_point else None
    if bounds is None:
        return
    low, high = bounds
    if low >= 0 and high <= 1 and bool((images != images.round()).any()):
        raise PixelError(
            f"{name}: expected values from 0 to {preprocessing.scale:g}, as declared in preprocessing=, got "
            f"[{low:.4g}, {high:.4g}]; these are pixels in [0, 1]: multiply them by {preprocessing.scale:g}, or leave "
            "scale out of preprocessing="
        )


def _per_channel(values: tuple[float, ...], pixels: Tensor) -> Tensor:
    if len(values) not in (1, pixels.shape[1]):
        raise PixelError(
            f"preprocessing: expected {pixels.shape[1]} means or stds for images {tuple(pixels.shape)}, one per "
            f"channel, got {len(values)}"
        )
    return constant_like(pixels, values).view(1, -1, 1, 1)


def constant_like(tensor: Tensor, values: Sequence[float]) -> Tensor:
    """A vector of constants with the dtype and device of a tensor; also while torch traces or captures a CUDA graph."""
    if tracing() or capturing(tensor):  # torch.tensor gives a warning, or breaks the capture
        return torch.stack([tensor.new_full((), value) for value in values])
    return torch.tensor(values, dtype=tensor.dtype, device=tensor.device)


def _as_numbers(values: Any) -> Any:
    """Lists, arrays and tensors as a tuple of floats; anything else as it is."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy() if values.dtype != torch.bfloat16 else values.tolist()
    if isinstance(values, np.ndarray) and values.ndim:
        values = list(values.reshape(-1))  # also (3, 1, 1), ready to be broadcast
    if not isinstance(values, list | tuple):
        return values
    # By way of text, so that 0.485 in float32 is 0.485 and not 0.48500001430511475.
    return tuple(float(str(x)) if isinstance(x, np.number) else x for x in values)
