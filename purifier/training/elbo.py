"""Recipe ``elbo``: trains a purifier on clean images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..answering import draw
from ..contracts.purifier import Purifier
from .recipe import Batch, Recipe, loss_of


@dataclass(frozen=True)
class Elbo(Recipe):
    """The purifier's own loss on clean images: it learns to reconstruct them."""

    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """The purifier's own loss terms."""
        noise = draw(purifier, batch.pixels, batch.generator)
        return loss_of(purifier, batch.pixels, batch.pixels, noise, batch.labels)
