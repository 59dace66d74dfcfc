"""What a recipe is: what a training step asks of a purifier. Its fields are its options (``NAME:key=value``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import OnePass, Purifier
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
        Which share of all steps is over, in [0, 1]; 1 when the last epoch is watched.
    """

    pixels: Tensor
    labels: Tensor
    generator: SampleGenerator
    lasting: SampleGenerator
    indices: Sequence[int]
    classifier: PixelClassifier | None = None
    done: float = 0.0


@dataclass(frozen=True)
class Recipe(ABC):
    """One way to train a purifier; a frozen dataclass."""

    suggested: ClassVar[Optimisation] = Optimisation()
    """What training does unless told otherwise."""
    needs_classifier: ClassVar[bool] = False
    """Whether a batch must come with the classifier; one with gradients, if ``needs_gradients``."""
    needs_exact: ClassVar[bool] = False
    """Whether it relies on autograd through the purifier."""

    @property
    def needs_gradients(self) -> bool:
        """Whether it asks the classifier for gradients."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """Files it reads, which the checkpoint must not replace."""
        return ()

    @property
    def takes_moved(self) -> bool:
        """Whether the images may be another augmentation of themselves in each epoch."""
        return True

    @abstractmethod
    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """The weighted scalar terms, batch means, whose sum is minimised; the purifier is in training mode."""

    def watch(self, purifier: Purifier, batches: Iterable[Batch]) -> dict[str, float]:
        """What the log says after an epoch of the purifier that comes of it, on images learned from."""
        return {}


def loss_of(
    purifier: Purifier, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor
) -> dict[str, Tensor]:
    """``purifier.loss``, with the labels for one that uses them."""
    extra: dict[str, Any] = {"labels": labels} if purifier.uses_labels else {}
    return purifier.loss(pixels, target, noise, **extra)


def purified_and_loss_of(
    purifier: Purifier, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Purified pixels and loss, from one pass if the purifier knows how."""
    if isinstance(purifier, OnePass):
        return purifier.purify_and_loss(pixels, target, noise, labels)
    return purifier.purify(pixels, noise), loss_of(purifier, pixels, target, noise, labels)


def learned_of(labels: Tensor, purifier: Purifier) -> Callable[[Tensor], Sequence[Tensor]]:
    """Pixels (N, C, H, W) with these labels -> what recipes ask of a purifier in the mode it is in."""

    def ask(pixels: Tensor) -> Sequence[Tensor]:
        noise = purifier.draw(pixels, SampleGenerator(0, range(len(pixels))))
        purified, terms = purified_and_loss_of(purifier, pixels, pixels.detach(), noise, labels)
        alone = [purifier.purify(pixels, noise)] if isinstance(purifier, OnePass) else []
        return [purified, *alone, *terms.values()]

    return ask
