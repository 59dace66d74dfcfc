"""Purifier ``vae``: a convolutional variational autoencoder (Kingma & Welling 2014) with a N(0, I) prior."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from purifier.errors import ConfigError
from purifier.interfaces import Purifier
from purifier.pixels import check_shape
from purifier.seeding import SampleGenerator

from ._autoencoder import Decoder, Encoder, layer_widths

DEEPEST, LONGEST_SIDE, MOST_WEIGHTS = 16, 65_536, 10**9
"""Beyond these an option is a slip, to be told before memory is asked for."""


@dataclass(frozen=True)
class VaeConfig:
    """Shape and size of a VAE.

    Parameters
    ----------
    image_shape
        (C, H, W) of the images; H and W must be multiples of ``2**depth``.
    channels
        Width of the first layer, doubled at each halving up to 256.
    depth
        How often the image is halved: 2 for 28x28 and 32x32, 4 or 5 for 224x224.
    latent
        Size of the latent vector; with ``spatial``, channels of the latent map.
    spatial
        A latent map of H / 2**depth x W / 2**depth in the place of one vector: for large images.
    sample
        Purify with z ~ q(z|x) in the place of the mean of q(z|x); needs noise.
    """

    image_shape: tuple[int, int, int]
    channels: int = 32
    depth: int = 2
    latent: int = 64
    spatial: bool = False
    sample: bool = False

    def __post_init__(self) -> None:
        if min(self.image_shape) < 1 or min(self.channels, self.depth, self.latent) < 1:
            raise ConfigError(f"vae: image_shape, channels, depth and latent must be positive, got {self}")
        height, width = self.image_shape[1:]
        if self.depth > DEEPEST or max(height, width) > LONGEST_SIDE:
            raise ConfigError(
                f"vae: expected a depth of at most {DEEPEST} and images of at most {LONGEST_SIDE} a side, got depth "
                f"{self.depth} and {height}x{width}"
            )
        if height % 2**self.depth or width % 2**self.depth:
            raise ConfigError(
                f"vae: images of {height}x{width} cannot be halved {self.depth} times; lower depth, or resize the "
                f"images to multiples of {2**self.depth}"
            )
        if self._weights() > MOST_WEIGHTS:
            raise ConfigError(
                f"vae: these options make {self._weights():.3g} weights, expected at most {MOST_WEIGHTS:.0e}; "
                "lower channels or latent, raise depth, or set spatial=true"
            )

    def _weights(self) -> int:
        """Weights of encoder and decoder, biases left out."""
        colours, height, width = self.image_shape
        widths = layer_widths(self.channels, self.depth)
        pixels = 1 if self.spatial else (height >> self.depth) * (width >> self.depth)
        convolutions = 9 * colours * widths[0] + 16 * sum(inner * outer for inner, outer in pairwise(widths))
        return 2 * convolutions + 3 * self.latent * widths[-1] * pixels


class Vae(Purifier):
    """Encodes, takes z from q(z|x) = N(mean, diag(variance)), decodes.

    The decoder's likelihood is Bernoulli for each value in [0, 1] (Kingma & Welling 2014, appendix C.1).
    """

    Config = VaeConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"
    config: VaeConfig

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        size = (config.image_shape, config.channels, config.depth, config.latent, config.spatial)
        self.encoder, self.decoder = Encoder(*size), Decoder(*size)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent,), or (latent, h, w) if spatial."""
        config = self.config
        height, width = (side >> config.depth for side in config.image_shape[1:])
        return (config.latent, height, width) if config.spatial else (config.latent,)

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
        """Standard normal noise (N, *latent_shape) when training or if ``sample``; else None."""
        if not (self.training or self.config.sample):
            return None
        return generator.normal(self.latent_shape, pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode z = mean + std * noise (equation 10, L = 1); without noise, the mean of q(z|x)."""
        return torch.sigmoid(self.decoder(self._latent(*self.encode(pixels), noise)))

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (N, *latent_shape)."""
        check_shape(pixels, name="pixels", shape=self.config.image_shape)
        mean, log_variance = self.encoder(pixels)
        return mean, log_variance

    def score(self, pixels: Tensor) -> Tensor:
        """The negative ELBO in nats with z at the mean of q(z|x), (N,)."""
        reconstruction, kl = self._elbo(pixels, pixels, None)
        return reconstruction + kl

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        """The two terms of the negative ELBO (equation 10), in nats an image, means over the batch."""
        reconstruction, kl = self._elbo(pixels, target, noise)
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    def _elbo(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encode(pixels)
        logits = self.decoder(self._latent(mean, log_variance, noise))
        reconstruction = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)
        return reconstruction, kl_to_standard_normal(mean, log_variance)

    @staticmethod
    def _latent(mean: Tensor, log_variance: Tensor, noise: Tensor | None) -> Tensor:
        return mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag(exp(log_variance))) || N(0, I)) in nats, (N,): Kingma & Welling 2014, appendix B."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
