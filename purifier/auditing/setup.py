"""The settings that all batches of an audit share, and a batch of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..data.images import ImageData


@dataclass(frozen=True)
class AuditSetup:
    """The two halves of the guard, the device they run on, and the audit's settings."""

    classifier: PixelClassifier
    purifier: Purifier
    device: torch.device
    seed: int
    eot: int
    judgements: int
    batch_size: int = 250

    def batch(self, data: ImageData, indices: Sequence[int]) -> Batch:
        """The images at these positions of the data, on the audit's device."""
        pixels, labels = (part.to(self.device) for part in data.batch(indices))
        return Batch(pixels, labels, indices)


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W), labels (N,), and the positions of the images in their data set."""

    pixels: Tensor
    labels: Tensor
    indices: Sequence[int]

    def select(self, at: Tensor) -> Batch:
        """The images at positions ``at``, (n,)."""
        if len(at) == len(self.indices):
            return self
        on_device = at.to(self.pixels.device)
        return Batch(self.pixels[on_device], self.labels[on_device], [self.indices[i] for i in at.tolist()])

    def split(self, size: int) -> list[Batch]:
        """Split into batches of at most ``size`` images."""
        return [self.select(at) for at in torch.split(torch.arange(len(self.indices)), size)]
