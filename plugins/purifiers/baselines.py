"""The cheap filters that every learned purifier must be compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from purifier.contracts.purifier import Purifier
from purifier.data.pixels import into_range
from purifier.errors import ConfigError


@dataclass(frozen=True)
class IdentityConfig:
    """The identity has no options."""


class Identity(Purifier):
    """Changes nothing, so the guard is the undefended classifier."""

    Config = IdentityConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels


@dataclass(frozen=True)
class BlurConfig:
    """How much to blur.

    Parameters
    ----------
    sigma
        The Gaussian's standard deviation, in pixels.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 16:
            raise ConfigError(f"blur: sigma must be in (0, 16] pixels, got {self.sigma}")


class Blur(Purifier):
    """Gaussian blur, truncated at three sigma and normalised; borders are replicated."""

    Config = BlurConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"
    kernel: Tensor

    def __init__(self, config: BlurConfig) -> None:
        super().__init__(config)
        self.radius = max(1, round(3 * config.sigma))
        steps = torch.arange(-self.radius, self.radius + 1, dtype=torch.float32)
        weights = torch.exp(-(steps**2) / (2 * config.sigma**2))
        self.register_buffer("kernel", weights / weights.sum(), persistent=False)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        channels, radius = pixels.shape[1], self.radius
        column = self.kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        padded = F.pad(pixels, (radius, radius, radius, radius), mode="replicate")
        blurred = F.conv2d(F.conv2d(padded, column, groups=channels), column.transpose(2, 3), groups=channels)
        return into_range(blurred)


@dataclass(frozen=True)
class BitDepthConfig:
    """How much to round.

    Parameters
    ----------
    bits
        Bits to keep per channel, from 1 to 8.
    """

    bits: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ConfigError(f"bit-depth: bits must be from 1 to 8, got {self.bits}")


class BitDepth(Purifier):
    """Rounds each value to ``bits`` bits (Xu et al. 2018, Feature Squeezing, section III-A).

    Its gradient is zero almost everywhere; its surrogate is the identity.
    """

    Config = BitDepthConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "surrogate"
    config: BitDepthConfig

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        levels = float(2**self.config.bits - 1)
        return (pixels * levels).round() / levels

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The identity, which differs from rounding by at most half a level."""
        return pixels
