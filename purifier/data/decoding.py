"""One image file -> the image that people see: upright, alpha over white, grey or colour, 8 bits, resized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import DataError
from ..foreign_code import Attempt
from .framing import Framing, Size

Mode = Literal["L", "RGB"]
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
LEAST_SHRUNK = 2
"""How much larger than wanted an image is decoded at least, in each direction."""
WHOLE = Framing()
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Facts:
    """What is known of an image once it has been decoded: width and height when upright, and whether it is grey."""

    size: Size
    grey: bool


@dataclass(frozen=True)
class _Shrunk:
    """A JPEG that is decoded at a part of its size, not yet turned upright."""

    size: Size
    """Of the whole image, upright."""
    target: Size
    """What to resize it to before it is turned."""
    box: tuple[float, float, float, float]
    """What holds the image; sizes are rounded up, so this can end within the last pixels."""


def decode(path: Path, mode: Mode | None = None, framing: Framing = WHOLE) -> tuple[Image.Image, Facts]:
    """The image in a file: upright, in ``mode`` (its own, L or RGB, by default), resized and cropped.

    A JPEG at least four times as large as ``framing`` resizes it to is decoded at 1/2, 1/4 or 1/8 of its size, such
    that this is still at least twice the wanted one: libjpeg leaves out the finest frequencies, which the resizing
    would remove.

    Raises
    ------
    DataError
        The file cannot be read, is damaged, or holds values that are not of 8 or 16 bits.
    """
    with Attempt((Exception,)) as reading, Image.open(path) as stored:  # Pillow's formats raise anything
        shrunk = _shrink(stored, framing)
        stored.load()
        grey = stored.mode in GREY_MODES
        if shrunk is None:
            ImageOps.exif_transpose(stored, in_place=True)  # in place, because a photo can take 100 MB
            size = stored.size
            image = _in_mode(_seen(stored, path), mode)
        else:
            size = shrunk.size
            image = _in_mode(_seen(stored, path), mode)
            image = image.resize(shrunk.target, Image.Resampling[framing.interpolation.upper()], shrunk.box)
            ImageOps.exif_transpose(image, in_place=True)
        return framing(image), Facts(size, grey)
    if isinstance(reading.error, DataError):
        raise reading.error
    raise DataError(
        f"cannot read image {path} ({reading.error}); fix or remove it, or leave it out with "
        "skip_bad=True (--skip-bad)",
        path,
    )


def _shrink(stored: Image.Image, framing: Framing) -> _Shrunk | None:
    """Have a large JPEG decoded at a part of its size; None for other images."""
    if not isinstance(stored, JpegImageFile) or framing.resize is None or framing.interpolation == "nearest":
        return None
    sideways = stored.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    size = stored.size[::-1] if sideways else stored.size
    target = framing.resized(size)[::-1] if sideways else framing.resized(size)
    if min(stored.width // target[0], stored.height // target[1]) < 2 * LEAST_SHRUNK:
        return None
    drafted = stored.draft(None, (LEAST_SHRUNK * target[0], LEAST_SHRUNK * target[1]))
    return None if drafted is None else _Shrunk(size, target, drafted[1])


def _in_mode(image: Image.Image, mode: Mode | None) -> Image.Image:
    return image if mode in (None, image.mode) else image.convert(mode)


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
