"""From an image of any size to the size a classifier takes: resize, then crop the centre."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import ConfigError
from .preprocessing import read_preprocessing

Size = tuple[int, int]
"""Width and height, in PIL's order."""
MOST_SIDE = 16_384
"""The longest side that ``resize`` and ``crop`` may ask for."""


@dataclass(frozen=True)
class Framing:
    """How images get the size that a classifier takes: like torchvision's ``Resize``, then ``CenterCrop``.

    Parameters
    ----------
    resize
        The length of the shorter side; or height and width, whatever the image's own proportions; None leaves it.
    crop
        Height and width of the piece cut from the centre; None leaves it.
    interpolation
        Name of a filter of Pillow's.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def resized(self, size: Size) -> Size:
        """The size of an image of ``size`` after ``resize``."""
        width, height = size
        if self.resize is None:
            return size
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        if width <= height:
            return self.resize, max(1, int(self.resize * height / width))
        return max(1, int(self.resize * width / height)), self.resize

    def framed(self, size: Size) -> Size:
        """The size of an image of ``size`` after resize and crop; at most the resized one."""
        width, height = self.resized(size)
        return (width, height) if self.crop is None else (min(self.crop[1], width), min(self.crop[0], height))

    def covers(self, size: Size) -> bool:
        """Whether an image of ``size`` is large enough for the crop."""
        width, height = self.resized(size)
        return self.crop is None or (self.crop[1] <= width and self.crop[0] <= height)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, resized and cropped."""
        size = self.resized(image.size)
        if size != image.size:
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        if self.crop is None:
            return image
        left, top = round((image.width - self.crop[1]) / 2), round((image.height - self.crop[0]) / 2)
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))


def read_framing(
    resize: int | Sequence[int] | str | None = None,
    crop: int | Sequence[int] | str | None = None,
    preprocessing: Any = None,
) -> Framing:
    """A ``Framing`` from numbers, or as far as they are not given from a classifier's preprocessing.

    Parameters
    ----------
    resize, crop
        A number; height and width; or text such as ``256`` or ``224x224`` (height x width). A single number is the
        shorter side for ``resize`` and a square for ``crop``.
    preprocessing
        As for ``purifier.guard``. Both sizes are taken from it only if neither is given, because they belong together.

    Raises
    ------
    ConfigError
        A size or the preprocessing cannot be read.
    """
    interpolation = "bilinear"
    if resize is None and crop is None:
        known = read_preprocessing(preprocessing)
        resize, crop, interpolation = known.resize, known.crop, known.interpolation
    sides, piece = _read_size("resize", resize), _read_size("crop", crop)
    return Framing(sides, (piece, piece) if isinstance(piece, int) else piece, interpolation)


def _read_size(name: str, given: object) -> int | tuple[int, int] | None:
    if given is None:
        return None
    found: object = given
    if isinstance(given, str):
        match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", given.strip(), re.ASCII)
        found = None if match is None else tuple(int(side) for side in match.groups() if side is not None)
    sides = (found,) if isinstance(found, int) else found
    if (
        not isinstance(sides, tuple | list)
        or len(sides) not in (1, 2)
        or not all(type(side) is int and 1 <= side <= MOST_SIDE for side in sides)
    ):
        raise ConfigError(
            f"{name}: expected a number of pixels from 1 to {MOST_SIDE}, or height and width such as 224x224, got "
            f"{given!r}"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
