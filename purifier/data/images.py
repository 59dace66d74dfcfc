"""Labelled images, served as batches of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFiles:
    """Image files of one size, decoded on access: ``files[positions]`` is uint8, (n, C, H, W).

    All are converted to ``mode``; by default to grey if all are grey, otherwise to colour.
    """

    def __init__(self, paths: Sequence[Path], mode: Literal["L", "RGB"] | None = None) -> None:
        self.paths = tuple(paths)
        headers = [_read_header(path) for path in self.paths]
        for path, (size, _) in zip(self.paths, headers, strict=True):
            if size != headers[0][0]:
                raise DataError(
                    f"expected images of one size, got {self.paths[0]} of {_size_text(headers[0][0])} and {path} of "
                    f"{_size_text(size)} (width x height); resize them",
                    path,
                )
        self.mode = mode or ("L" if all(stored == "L" for _, stored in headers) else "RGB")
        (width, height) = headers[0][0]
        self.shape = (len(self.paths), 1 if self.mode == "L" else 3, height, width)

    def __getitem__(self, positions: Tensor) -> Tensor:
        out = torch.empty((len(positions), *self.shape[1:]), dtype=torch.uint8)
        for row, position in zip(out, positions.tolist(), strict=True):
            path = self.paths[position]
            try:
                with Image.open(path) as image:
                    decoded = np.array(image.convert(self.mode))
            except (OSError, ValueError, SyntaxError) as error:
                raise _unreadable(path, error) from error
            row.copy_(torch.from_numpy(decoded).view(*self.shape[2:], -1).permute(2, 0, 1))
        return out


class ImageData:
    """Labelled images, served as batches of pixels.

    Parameters
    ----------
    name
        The DATA spec they come from.
    images
        (N, C, H, W) with 1 or 3 channels: uint8, floats in [0, 1], or files.
    labels
        (N,) non-negative integers.
    classes
        Class names, in the order of the labels; may be empty.

    Raises
    ------
    DataError
        No images, a wrong shape, type or range, or labels that do not fit.
    """

    def __init__(self, name: str, images: Tensor | ImageFiles, labels: Tensor, classes: Sequence[str] = ()) -> None:
        self.name = name
        self.classes = tuple(classes)
        if isinstance(images, Tensor):
            images = _checked_images(images, name)
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(
                f"{name}: expected labels (N,) of integers, got {tuple(labels.shape)} of {labels.dtype}", name
            )
        if len(labels) != images.shape[0]:
            raise DataError(f"{name}: expected a label for each of {images.shape[0]} images, got {len(labels)}", name)
        self.labels = labels.long()
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or (self.classes and high >= len(self.classes)):
            wanted = f"from 0 to {len(self.classes) - 1}" if self.classes else "of 0 or more"
            raise DataError(f"{name}: expected labels {wanted}, got {low} to {high}", name)
        self.shape: tuple[int, int, int] = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        self._images = images

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images at the given positions: pixels (n, C, H, W) float32 in [0, 1], and labels (n,) int64."""
        positions = torch.as_tensor(indices, dtype=torch.int64)
        images = self._images[positions]
        return images.float() / 255 if images.dtype == torch.uint8 else images, self.labels[positions]

    def spread(self, count: int) -> list[int]:
        """Positions of at most ``count`` images, evenly spaced, because data sets are often sorted by class."""
        positions: list[int] = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        return positions


def _checked_images(images: Tensor, name: str) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"{name}: expected images (N, 1 or 3, H, W), got {tuple(images.shape)}", name)
    if images.numel() == 0:
        raise DataError(f"{name}: expected at least one image, got {tuple(images.shape)}", name)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{name}: expected images of uint8, or floats in [0, 1], got {images.dtype}", name)
    low, high = (value.item() for value in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # written this way so NaN fails too
        raise DataError(
            f"{name}: expected float images in [0, 1], got [{low:.4g}, {high:.4g}]; undo any normalisation, "
            "divide 0-255 images by 255 or store them as uint8, and remove any NaN",
            name,
        )
    return images.float()


def _read_header(path: Path) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(path) as image:
            size, mode = image.size, image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if mode.startswith(("I", "F")):  # PIL would clip these to 8 bits, not scale them
        raise DataError(f"expected 8-bit images, got {path} of mode {mode}; convert it", path)
    return size, mode


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"cannot read image {path} ({error}); fix or remove it", path)


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
