"""The images that a purifier is trained on, and what the log says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..contracts.purifier import Purifier
from ..data.given import Data, read_data
from ..data.images import ImageData
from ..errors import ConfigError
from .optimisation import Optimisation
from .recipe import Recipe


def training_images(
    data: Data, root: str | Path | None, preprocessing: Any, recipe: Recipe, optimisation: Optimisation
) -> ImageData:
    """The images of ``data``; raise ``ConfigError`` if they cannot be augmented as asked."""
    images = read_data(data, root=root, preprocessing=preprocessing)
    if optimisation.augment != "none" and not recipe.allows_augmentation:
        raise ConfigError("denoise:cached=true uses the same images in each epoch; leave out augment or cached")
    return images


def check_labels(purifier: Purifier, images: ImageData) -> None:
    """Raise ``ConfigError`` if the purifier learns from labels and there are none."""
    if purifier.uses_labels and not images.labelled:
        raise ConfigError(
            f"{type(purifier).__name__} learns from labels, but {images.name} has none; give labels, turn that option "
            "off, or use a recipe with a classifier, whose answers are then the labels"
        )


def data_facts(images: ImageData) -> dict[str, Any]:
    """The log's facts about data that is not as usual: labels that are answers, images that were left out."""
    labels = {"labels": "answers of the classifier"} if images.own_answers else {}
    return labels | ({"skipped": len(images.skipped)} if images.skipped else {})
