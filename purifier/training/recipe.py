"""What a recipe is: what a training step asks of a purifier. Its fields are its options (``NAME:key=value``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..classifier import PixelClassifier
from ..interfaces import Purifier
from ..seeding import SampleGenerator
from .optimisation import Optimisation


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Parameters
    ----------
    pixels
        (N, C, H, W) in [0, 1].
    labels
        (N,) int64.
    generator
        Of the images' randomness, another one each epoch.
    lasting
        Likewise, but the same in all epochs: an image's index is all it depends on beside the seed.
    indices
        The images' positions in their data set, length N.
    classifier
        The classifier the purifier is for, at rest; None if the recipe needs none.
    done
        Which share of all steps is over, in [0, 1).
    """

    pixels: Tensor
    labels: Tensor
    generator: SampleGenerator
    lasting: SampleGenerator
    indices: Sequence[int]
    classifier: PixelClassifier | None = None
    done: float = 0.0


class Recipe(ABC):
    """One way to train a purifier; a frozen dataclass."""

    suggested: ClassVar[Optimisation] = Optimisation()
    """What training does unless told otherwise."""
    needs_classifier: ClassVar[bool] = False
    """Whether a batch must come with the classifier; one with gradients, if ``needs_gradients``."""
    needs_gradients: ClassVar[bool] = False

    @abstractmethod
    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """The weighted scalar terms, batch means, whose sum is minimised; the purifier is in training mode."""

    def watch(self, purifier: Purifier, batch: Batch) -> dict[str, float]:
        """What the log says of the purifier after an epoch, on images it learned from."""
        return {}


def labels_for(purifier: Purifier, labels: Tensor) -> dict[str, Any]:
    """The labels as ``loss`` takes them, if it does."""
    return {"labels": labels} if purifier.uses_labels else {}
