"""Recipe ``elbo``: clean images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..interfaces import Purifier
from .recipe import Batch, Recipe, labels_for


@dataclass(frozen=True)
class Elbo(Recipe):
    """The purifier's own loss on clean images: it learns to give them back."""

    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """The purifier's own terms."""
        noise = purifier.draw(batch.pixels, batch.generator)
        return purifier.loss(batch.pixels, batch.pixels, noise, **labels_for(purifier, batch.labels))
