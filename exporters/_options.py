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
