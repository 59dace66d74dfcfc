"""What users hand over as ``data=``: a DATA spec, ImageData, tensors, a torch Dataset or a DataLoader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import ConfigError
from .datasets import DatasetImages, positions_of
from .images import ImageData
from .loading import from_arrays, load_data

Images: TypeAlias = Tensor | NDArray[Any]
Data: TypeAlias = "ImageData | str | Dataset[Any] | DataLoader[Any] | Images | tuple[Images, Images]"
"""What ``read_data`` takes."""
EXPECTED = "expected a DATA spec, ImageData, images (N, C, H, W), (images, labels), a torch Dataset or a DataLoader"


def check_data(data: object) -> None:
    """Raise ``ConfigError`` unless ``data`` is of a type that ``read_data`` takes."""
    if isinstance(data, IterableDataset) or isinstance(getattr(data, "dataset", None), IterableDataset):
        raise ConfigError(
            "data: an IterableDataset cannot be read twice in the same order; give a Dataset with __getitem__ and "
            "__len__, or collect its images and labels into tensors"
        )
    if isinstance(data, tuple | list):
        if len(data) != 2 or not all(isinstance(part, Tensor | np.ndarray) for part in data):
            raise ConfigError(f"data: {EXPECTED}, got a {type(data).__name__} of {_kinds(data)}")
    elif not isinstance(data, ImageData | str | Tensor | np.ndarray | DataLoader) and not _is_dataset(data):
        raise ConfigError(f"data: {EXPECTED}, got {type(data).__name__}" + _advice(data))


def read_data(data: Data, *, root: str | Path | None = None, preprocessing: Any = None) -> ImageData:
    """The images of whatever users have.

    Parameters
    ----------
    data
        A DATA spec, read by ``load_data`` with ``root`` and ``preprocessing``; ``ImageData``, returned as it is; images
        alone or ``(images, labels)``, tensors or arrays with images (N, C, H, W), (N, H, W, C) or (N, H, W); a torch
        ``Dataset`` of ``(image, label)``, of images, or of mappings with ``image`` or ``pixel_values`` and ``label`` or
        ``labels``; or a ``DataLoader``, of which the images are read one at a time, in the order of the data set if it
        shuffles. Images are pixels: uint8, PIL images, or floats in [0, 1] that are not normalised.

    Raises
    ------
    ConfigError
        It is none of these.
    SpecError, DataError
        It cannot be read, or its images are not pixels of one shape.
    """
    check_data(data)
    if isinstance(data, str):
        return load_data(data, root=root, preprocessing=preprocessing)
    if isinstance(data, ImageData):
        return data
    if isinstance(data, Tensor | np.ndarray):
        return from_arrays("images", _array(data), None)
    if isinstance(data, tuple | list):
        return from_arrays("(images, labels)", _array(data[0]), _array(data[1]))
    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else loader.dataset
    positions = range(len(dataset)) if loader is None else positions_of(loader)
    name = type(dataset).__name__
    images = DatasetImages(name, dataset, positions, None if loader is None else loader.collate_fn)
    classes = getattr(dataset, "classes", ())
    named = isinstance(classes, list | tuple) and all(isinstance(one, str) for one in classes)
    fits = named and images.labels is not None and int(images.labels.max()) < len(classes)
    return ImageData(name, images, images.labels, classes if fits else ())


def _is_dataset(data: object) -> bool:
    return isinstance(data, Dataset) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, bytes | dict)
    )


def _array(part: Images) -> NDArray[Any]:
    if not isinstance(part, Tensor):
        return part
    part = part.detach().cpu()
    return (part.float() if part.dtype == torch.bfloat16 else part).numpy()


def _kinds(data: tuple[object, ...] | list[object]) -> str:
    return ", ".join(type(part).__name__ for part in data[:5]) or "nothing"


def _advice(data: object) -> str:
    return f"; write 'folder:{data}' or 'npz:{data}'" if isinstance(data, Path) else ""
