"""The images of a torch Dataset, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from ..errors import DataError
from ..foreign_code import explained
from .images import checked_images

IMAGE_KEYS = ("pixel_values", "image", "images", "img", "pixels")
LABEL_KEYS = ("labels", "label", "target", "targets")


class DatasetImages:
    """Images of a data set by position: ``images[positions]`` is (n, C, H, W), uint8 or float32 in [0, 1].

    Every item is read once when this is made, for its label, and to find those that are no images of one shape; no
    image is kept. The first one is read twice: a data set that answers differently each time cannot be audited.

    Raises
    ------
    DataError
        The data set is empty, fails, or an item is no image in [0, 1] of the same shape as the first.
    """

    def __init__(
        self, name: str, dataset: Any, positions: Sequence[int], collate: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self._name, self._dataset, self._positions = name, dataset, positions
        self._collate = None if collate is default_collate else collate
        if not len(positions):
            raise DataError(f"{name}: expected at least one image, got an empty data set", name)
        first, _ = self._item(0)
        if not torch.equal(first, self._item(0)[0]):
            raise DataError(
                f"{name}: image 0 is another one each time it is read; leave random transforms out (training has "
                "augment= of its own)",
                name,
            )
        self.shape = (len(positions), *first.shape)
        self._dtype = first.dtype
        labels = [self._read(place)[1] for place in range(len(positions))]
        self.labels = self._labels(labels)
        """(N,), or None if the items have no labels."""

    def __getitem__(self, positions: Tensor) -> Tensor:
        return torch.stack([self._read(place)[0] for place in positions.tolist()])

    def _labels(self, found: Sequence[object]) -> Tensor | None:
        if all(label is None for label in found):
            return None
        for place, label in enumerate(found):
            if type(label) is not int:
                raise DataError(
                    f"{self._name}: expected a whole number as the label of image {place}, got {label!r}; give the "
                    "number of its class, or no labels at all",
                    self._name,
                )
        return torch.tensor(found)

    def _read(self, place: int) -> tuple[Tensor, object]:
        image, label = self._item(place)
        if (image.shape, image.dtype) != (self.shape[1:], self._dtype):
            raise DataError(
                f"{self._name}: expected images {tuple(self.shape[1:])} of {self._dtype} like the first, got "
                f"{tuple(image.shape)} of {image.dtype} as image {place}; resize and crop them in the data set",
                self._name,
            )
        return image, label

    def _item(self, place: int) -> tuple[Tensor, object]:
        with explained(f"{self._name} fails to give image {place}", lambda text: DataError(text, self._name)):
            item = self._dataset[self._positions[place]]
            if self._collate is not None:
                item = self._collate([item])
            image, label = _parts(item)
            if self._collate is not None:
                image, label = image[0], None if label is None else label[0]
            image = _as_tensor(image)
            label = label.item() if isinstance(label, Tensor | np.ndarray | np.generic) and label.size else label
        return checked_images(image[None], f"{self._name}, image {place}")[0], label


def positions_of(loader: DataLoader[Any]) -> Sequence[int]:
    """The positions in the data set that a loader's sampler picks; in order if it only shuffles.

    A sampler may pick a part of the data set, which is then what the user means.
    """
    count = len(loader.dataset)  # type: ignore[arg-type]  # an IterableDataset is refused, and all others have __len__
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        return sorted(place for batch in batches for place in batch)
    if isinstance(loader.sampler, SequentialSampler | RandomSampler):
        return range(count)
    return sorted(loader.sampler)


def _parts(item: Any) -> tuple[Any, Any]:
    """Image and label of an item; None for a missing label."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        return image, next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _as_tensor(image: Any) -> Tensor:
    """An image as (C, H, W)."""
    if isinstance(image, Image.Image):
        image = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        image = image[..., None] if image.ndim == 2 else image
        return torch.from_numpy(image).permute(2, 0, 1)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor) or image.ndim not in (2, 3):
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"expected an image (C, H, W), a PIL image or (image, label), got {got}")
    found: Tensor = image[None] if image.ndim == 2 else image
    is_last = found.shape[0] not in (1, 3) and found.shape[2] in (1, 3)
    return found.permute(2, 0, 1) if is_last else found
