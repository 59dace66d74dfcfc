"""The images that a purifier and an ONNX classifier take together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..contracts.purifier import Purifier, image_shape_of
from ..data.pixels import Preprocessing
from ..errors import ConfigError


def agreed_shape(
    purifier: Purifier,
    preprocessing: Preprocessing,
    declared: tuple[int | None, ...],
    given: tuple[int, int, int] | None = None,
) -> tuple[int | None, ...]:
    """The sizes of the images in the classifier's layout, batch first; None where nobody fixes them.

    Parameters
    ----------
    declared
        What the classifier declares, in its layout; None for a free size.
    given
        (C, H, W) from the caller.

    Raises
    ------
    ConfigError
        Purifier, classifier and caller do not agree.
    """
    order = places_of(preprocessing)
    sizes: list[int | None] = [declared[place] for place in order[1:]]
    name = type(purifier).__name__
    wanted = [
        (image_shape_of(purifier), f"{name} purifies images", "train a purifier for these images"),
        (given, "image_shape is", "leave image_shape out (--image-shape on the command line)"),
    ]
    for shape, says, advice in wanted:
        if shape is not None and any(
            None not in (own, size) and own != size for own, size in zip(shape, sizes, strict=True)
        ):
            raise ConfigError(
                f"{says} {_text(shape)}, but the classifier takes "
                f"{_text(sizes)} (C, H, W), {preprocessing.layout}; "
                f"{advice}, or give the layout with preprocessing="
            )
        sizes = [size if own is None else own for own, size in zip(shape or (None, None, None), sizes, strict=True)]
    agreed = [declared[0], None, None, None]
    for place, size in zip(order[1:], sizes, strict=True):
        agreed[place] = size
    return tuple(agreed)


def _text(sizes: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in sizes)})"


def places_of(preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Where the classifier's layout has N, C, H and W."""
    return (0, 3, 1, 2) if preprocessing.layout == "NHWC" else (0, 1, 2, 3)


def given_shape(image_shape: Any) -> tuple[int, int, int] | None:
    """The argument ``image_shape``; raise ``ConfigError`` unless it is None or (C, H, W)."""
    if image_shape is None:
        return None
    if (
        not isinstance(image_shape, tuple | list)
        or len(image_shape) != 3
        or not all(type(size) is int and size > 0 for size in image_shape)
    ):
        raise ConfigError(f"image_shape: expected (C, H, W), three positive integers, got {image_shape!r}")
    channels, height, width = image_shape
    return channels, height, width
