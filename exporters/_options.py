"""Checks of the options that exporters share."""

from __future__ import annotations

from typing import Any

from purifier.errors import ConfigError


def check_shape(shape: Any) -> None:
    """Raise ``ConfigError`` unless this is None or (C, H, W)."""
    if shape is not None and not (_are_sizes(shape) and len(shape) == 3):
        raise ConfigError(f"image_shape: expected (C, H, W), three positive integers, got {shape!r}")


def check_batches(batches: Any) -> None:
    """Raise ``ConfigError`` unless these are batch sizes."""
    if not _are_sizes(batches) or not batches:
        raise ConfigError(f"batches: expected positive batch sizes, such as (1, 2, 7), got {batches!r}")


def check_tolerance(tolerance: Any) -> None:
    """Raise ``ConfigError`` unless this is a number of at least 0."""
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise ConfigError(f"tolerance: expected a number, 0 or more, got {tolerance!r}")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple | list | range) and all(type(value) is int and value > 0 for value in values)


def check_judging(min_agreement: Any, sample: Any) -> None:
    """Raise ``ConfigError`` unless these are a share of images, or None, and a number of images."""
    number = isinstance(min_agreement, int | float) and not isinstance(min_agreement, bool)
    if min_agreement is not None and not (number and 0 <= min_agreement <= 1):
        raise ConfigError(f"min_agreement: expected a share of images in [0, 1], got {min_agreement!r}")
    if type(sample) is not int or sample < 1:
        raise ConfigError(f"sample: expected a number of images, 1 or more, got {sample!r}")


def check_batch(batch: Any) -> None:
    """Raise ``ConfigError`` unless this is None or a batch size."""
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ConfigError(f"batch: expected a batch size, 1 or more, got {batch!r}")
