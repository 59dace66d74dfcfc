"""Images, labelled or not, served as batches of pixels."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import DataError
from .files import ImageFiles
from .framing import Framing

UNLABELLED = -1
"""The label of each image of data without labels."""


class ImageSource(Protocol):
    """Where images come from when they are not all in memory."""

    shape: tuple[int, int, int, int]
    """(N, C, H, W)."""

    def __getitem__(self, positions: Tensor) -> Tensor:
        """The images at ``positions`` (n,): (n, C, H, W), uint8 or floats in [0, 1]."""


class ImageData:
    """Images, labelled or not, served as batches of pixels.

    Parameters
    ----------
    name
        The DATA spec they come from.
    images
        (N, C, H, W) with 1 or 3 channels: uint8, floats in [0, 1], or files.
    labels
        (N,) non-negative integers; None if the images have no labels.
    classes
        Class names, in the order of the labels; may be empty.
    skipped
        The images that were left out because they cannot be read.

    Raises
    ------
    DataError
        No images, a wrong shape, type or range, or labels that do not fit.
    """

    def __init__(
        self,
        name: str,
        images: Tensor | ImageSource,
        labels: Tensor | None,
        classes: Sequence[str] = (),
        *,
        skipped: Sequence[Path] = (),
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.skipped = tuple(skipped)
        self.labelled = labels is not None
        """Whether the images came with labels; without, each label is ``UNLABELLED``."""
        self.own_answers = False
        """Whether the labels are a classifier's own answers, so that to be right is to agree with it."""
        self._images = checked_images(images, name) if isinstance(images, Tensor) else images
        _, channels, height, width = self._images.shape
        self.shape: tuple[int, int, int] = (int(channels), int(height), int(width))
        if labels is None:
            self.labels = torch.full((self._images.shape[0],), UNLABELLED)
        else:
            self.labels = self._checked_labels(labels)

    def _checked_labels(self, labels: Tensor) -> Tensor:
        name, count = self.name, self._images.shape[0]
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(
                f"{name}: expected labels (N,) of integers, got {tuple(labels.shape)} of {labels.dtype}", name
            )
        if len(labels) != count:
            raise DataError(f"{name}: expected a label for each of {count} images, got {len(labels)}", name)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (self.classes and high >= len(self.classes)):
            wanted = f"from 0 to {len(self.classes) - 1}" if self.classes else "of 0 or more"
            raise DataError(f"{name}: expected labels {wanted}, got {low} to {high}", name)
        return labels.long()

    def __len__(self) -> int:
        return len(self.labels)

    def framing(self) -> dict[str, Any]:
        """How image files are resized and cropped, as JSON values; empty if they are not, or are no files."""
        if not isinstance(self._images, ImageFiles) or self._images.framing == Framing():
            return {}
        return dataclasses.asdict(self._images.framing)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images at the given positions: pixels (n, C, H, W) float32 in [0, 1], and labels (n,) int64."""
        positions = torch.as_tensor(indices, dtype=torch.int64)
        images = self._images[positions]
        pixels = images.float().div_(255) if images.dtype == torch.uint8 else images
        return pixels, self.labels[positions]

    def batches(self, parts: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """``batch`` for each list of positions; image files are decoded one batch ahead of the caller."""
        if not isinstance(self._images, ImageFiles):  # other people's data sets may not run beside other code
            yield from map(self.batch, parts)
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(self.batch, part) for part in parts[:1])
            for part in parts[1:]:
                ready = waiting.popleft().result()
                waiting.append(pool.submit(self.batch, part))
                yield ready
            yield from (last.result() for last in waiting)

    def spread(self, count: int) -> list[int]:
        """Positions of at most ``count`` images, evenly spaced, because data sets are often sorted by class."""
        positions: list[int] = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        return positions

    def without_labels(self) -> ImageData:
        """The same images without labels."""
        found = copy.copy(self)
        found.labels, found.labelled, found.own_answers = torch.full_like(self.labels, UNLABELLED), False, False
        found.classes = ()
        return found

    def with_answers(self, answers: Tensor) -> ImageData:
        """The same images, with a classifier's own answers (N,) as labels."""
        found = copy.copy(self)
        found.labels, found.labelled, found.own_answers = found._checked_labels(answers), True, True
        return found


def checked_images(images: Tensor, name: str) -> Tensor:
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
