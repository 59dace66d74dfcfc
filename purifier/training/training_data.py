"""The images that a purifier is trained on, and what the log says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..classifiers.own_answers import with_own_answers
from ..classifiers.pixel_classifier import PixelClassifier
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


def labelled_for(
    purifier: Purifier,
    images: ImageData,
    classifier: PixelClassifier | None,
    batch_size: int,
    device: torch.device,
    tell: Callable[[int], None] | None = None,
) -> ImageData:
    """The images, labelled by the classifier's own answers if there are no labels; unlabelled without a classifier.

    ``tell`` gets the number of images that the classifier has labelled so far.

    Raises
    ------
    ConfigError
        The purifier learns from labels, and there is neither a label nor a classifier.
    """
    if classifier is not None:
        return with_own_answers(images, lambda pixels, _: classifier(pixels), batch_size, device, tell)
    if purifier.uses_labels and not images.labelled:
        raise ConfigError(
            f"{type(purifier).__name__} learns from labels, but {images.name} has none; give labels, turn that option "
            "off, or use a recipe with a classifier, whose answers are then the labels"
        )
    return images


def data_settings(images: ImageData) -> dict[str, Any]:
    """What must be the same when a run is resumed: which images, how many, and how they are resized and cropped."""
    framing = images.framing()
    return {"data": images.name, "images": len(images), **({"framing": framing} if framing else {})}


def data_facts(images: ImageData, classifier: PixelClassifier | None) -> dict[str, Any]:
    """The log's facts about data that is not as usual: labels that are answers, images that were left out."""
    answered = classifier is not None and not images.labelled
    labels = {"labels": "answers of the classifier"} if answered else {}
    return labels | ({"skipped": len(images.skipped)} if images.skipped else {})
