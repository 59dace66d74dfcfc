"""One image file -> the image that people see: upright, alpha over white, grey or colour, 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError
from ..foreign_code import Attempt

Mode = Literal["L", "RGB"]
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Facts:
    """What is known of an image once it has been decoded: width and height when upright, and whether it is grey."""

    size: tuple[int, int]
    grey: bool


def decode(path: Path, mode: Mode) -> Image.Image:
    """The image in a file, upright and in ``mode``.

    Raises
    ------
    DataError
        The file cannot be read, is damaged, or holds values that are not of 8 or 16 bits.
    """
    image, _ = _opened(path)
    return image if image.mode == mode else image.convert(mode)


def examine(path: Path) -> Facts | DataError:
    """Decode an image file completely, so that a damaged one is found now; the error is returned."""
    try:
        image, grey = _opened(path)
    except DataError as error:
        return error
    return Facts(image.size, grey)


def _opened(path: Path) -> tuple[Image.Image, bool]:
    with Attempt((Exception,)) as reading, Image.open(path) as stored:  # Pillow's formats raise anything
        stored.load()
        ImageOps.exif_transpose(stored, in_place=True)  # in place, because a photo can take 100 MB
        return _seen(stored, path), stored.mode in GREY_MODES
    if isinstance(reading.error, DataError):
        raise reading.error
    raise DataError(
        f"cannot read image {path} ({reading.error}); fix or remove it, or leave it out with "
        "skip_bad=True (--skip-bad)",
        path,
    )


def _seen(image: Image.Image, path: Path) -> Image.Image:
    """An upright image as a viewer shows it, in mode L or RGB."""
    if image.mode.startswith(("I", "F")):
        return _to_8_bits(image, path)
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    layers = image.convert("RGBA")
    white = Image.new("RGBA", layers.size, "white")
    white.alpha_composite(layers)
    return white.convert("L" if image.mode in GREY_MODES else "RGB")


def _to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """A grey image of 16 bits, where white is 65535; Pillow itself would clip its values to 255."""
    values = np.asarray(image)
    if image.mode.startswith("F") or values.min() < 0 or values.max() > 65_535:
        raise DataError(f"expected an image of 8 or 16 bits, got {path} of mode {image.mode}; convert it", path)
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
