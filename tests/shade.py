"""A purifier that darkens images, for what is kept of purifiers under a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from purifier.contracts.purifier import Purifier

SHAPE = (None, 3, 8, 8)


@dataclass(frozen=True)
class ShadeConfig:
    factor: float = 0.5


class Shade(Purifier):
    """Darkens, by its config, a weight and an attribute."""

    Config = ShadeConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def __init__(self, config: ShadeConfig = ShadeConfig()) -> None:  # frozen
        super().__init__(config)
        self.weight = nn.Parameter(torch.tensor([0.5]))
        self.power: Any = 1

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels * self.weight * self.config.factor**self.power
