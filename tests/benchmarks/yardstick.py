"""A classifier trained by the loop that trains purifiers, to compare with a purifier in front of a frozen one.

``Written`` is the classifier as a purifier, and ``Reader`` stands for the frozen classifier behind it: so recipes train
the one exactly as they train a purifier for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifier.contracts.purifier import Purifier, purifiers

RANGE = 128.0
"""Logits from -RANGE / 2 to RANGE / 2 are pixels from 0 to 1."""
CLASSES = 10


@dataclass(frozen=True)
class NoConfig:
    """Nothing to choose."""


class Written(Purifier):
    """A classifier as a purifier: it writes its logits into the first pixels of the image it returns."""

    Config = NoConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"
    make: ClassVar[Callable[[], nn.Module]]

    def __init__(self, config: NoConfig) -> None:
        super().__init__(config)
        self.classifier = type(self).make()

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        logits = self.classifier(pixels).to(pixels.dtype)
        written = F.pad(logits / RANGE + 0.5, (0, pixels[0].numel() - logits.shape[1]))
        return written.view_as(pixels)

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        return {}


class Reader(nn.Module):
    """The classifier that ``Written`` is trained for: it reads the logits from the image.

    A real image, without written logits, goes to the frozen classifier: so recipes distil that one into the yardstick
    as they do into the purifier.
    """

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.range = nn.Parameter(torch.tensor(RANGE))
        self.frozen = frozen

    def forward(self, images: Tensor) -> Tensor:
        logits, rest = images.flatten(1).split([CLASSES, images[0].numel() - CLASSES], 1)
        if rest.any():
            answer: Tensor = self.frozen(images)
            return answer
        return (logits - 0.5) * self.range


def register(name: str, make: Callable[[], nn.Module]) -> None:
    """Make the plugin ``name``: the classifiers that ``make`` returns, of pixels in [0, 1], as purifiers."""
    purifiers.register(name, type("Written", (Written,), {"make": staticmethod(make)}))
