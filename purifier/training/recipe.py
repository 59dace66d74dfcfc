"""The base class of recipes, which define a training step. The fields of a recipe are its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..answering import draw
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import OnePass, Purifier
from ..data.images import ImageData
from ..errors import TrainingError
from ..seeding import SampleGenerator
from .optimisation import Optimisation


class Collapse(TrainingError):
    """A recipe found that what the last epochs learned is worthless; training goes back to the state before them."""


@dataclass(frozen=True)
class Batch:
    """The input of one training step.

    Parameters
    ----------
    pixels
        (N, C, H, W) in [0, 1].
    labels
        (N,) int64.
    generator
        Random streams of the images, different in each epoch.
    lasting
        Random streams that are the same in all epochs: they depend only on the seed and the image's index.
    indices
        The positions of the images in their data set, length N.
    classifier
        The classifier that the purifier is for, frozen; None if the recipe needs none.
    done
        The share of all steps that is done, in [0, 1]; 1 in ``watch`` after the last epoch.
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
    """The default settings of training with this recipe."""
    needs_classifier: ClassVar[bool] = False
    """Whether a batch needs the classifier; it must have gradients if ``needs_gradients``."""

    @property
    def needs_gradients(self) -> bool:
        """Whether it needs gradients of the classifier."""
        return False

    @property
    def needs_exact(self) -> bool:
        """Whether it differentiates through ``purify`` with autograd."""
        return False

    @property
    def input_files(self) -> tuple[str, ...]:
        """The files that it reads, which the checkpoint must not replace."""
        return ()

    @property
    def allows_augmentation(self) -> bool:
        """Whether the images may be augmented differently in each epoch."""
        return True

    @property
    def can_collapse(self) -> bool:
        """Whether ``watch`` may raise ``Collapse``."""
        return type(self).watch is not Recipe.watch

    def begin(
        self, purifier: Purifier, data: ImageData, classifier: PixelClassifier | None, device: torch.device
    ) -> None:
        """Called once, before the first step of a run that was not stopped before."""
        return

    @abstractmethod
    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """The weighted scalar terms, batch means, whose sum is minimised; the purifier is in training mode."""

    def memory_step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """The terms of a step that takes as much memory as ``step``; overridden where that takes long."""
        return self.step(purifier, batch)

    def watch(self, purifier: Purifier, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures for the log after an epoch, about the purifier that would be saved, on training images.

        Raises
        ------
        Collapse
            Training has gone wrong, and stops.
        """
        return {}


def loss_of(
    purifier: Purifier, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor
) -> dict[str, Tensor]:
    """``purifier.loss``, with the labels if the purifier uses them."""
    extra: dict[str, Any] = {"labels": labels} if purifier.uses_labels else {}
    return purifier.loss(pixels, target, noise, **extra)


def purified_and_loss_of(
    purifier: Purifier, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Purified pixels and loss, from a single pass if the purifier supports that."""
    if isinstance(purifier, OnePass):
        return purifier.purify_and_loss(pixels, target, noise, labels)
    return purifier.purify(pixels, noise), loss_of(purifier, pixels, target, noise, labels)


def learned_of(labels: Tensor, purifier: Purifier) -> Callable[[Tensor], Sequence[Tensor]]:
    """A function of pixels (N, C, H, W) with these labels that calls the purifier in every way that recipes do."""

    def ask(pixels: Tensor) -> Sequence[Tensor]:
        noise = draw(purifier, pixels, SampleGenerator(0, range(len(pixels))))
        purified, terms = purified_and_loss_of(purifier, pixels, pixels.detach(), noise, labels)
        alone = [purifier.purify(pixels, noise)] if isinstance(purifier, OnePass) else []
        return [purified, *alone, *terms.values()]

    return ask
