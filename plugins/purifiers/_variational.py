"""Shared by ``vae`` and ``gmvae``: encoder, decoder, the ELBO, and how unusual an image is."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional as F

from purifier.contracts.purifier import Purifier
from purifier.data.pixels import check_shape
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._autoencoder import EXPANSION, Decoder, Encoder, layer_widths

P = ParamSpec("P")
MAX_DEPTH, MAX_SIDE, MAX_BLOCKS, MAX_WEIGHTS = 16, 65_536, 1000, 10**9
"""Larger values are probably mistakes, so they are errors before any memory is allocated."""


@dataclass(frozen=True)
class VariationalConfig:
    """Shape and size of a variational autoencoder.

    Parameters
    ----------
    image_shape
        (C, H, W) of the images; H and W must be multiples of ``2**depth``.
    channels
        Width of the first layer, doubled at each halving up to 256.
    depth
        How many times the image is halved: 2 for 28x28 and 32x32, 4 or 5 for 224x224.
    latent
        Size of the latent vector; with ``spatial``, channels of the latent map.
    spatial
        Use a latent map of H / 2**depth x W / 2**depth instead of one vector; for large images.
    blocks
        Residual blocks where the encoder's map is smallest: much capacity for little time; worth it with the recipe
        ``robust``.
    sample
        Purify with z ~ q(z|x) instead of the mean of q(z|x); needs noise.
    score
        How to measure how unusual an image is. ``elbo``: the negative ELBO in nats, that is -log p(x|z) at the
        latent that is decoded to purify (instead of its mean over q(z|x)), plus the KL divergence (for a mixture, a
        closed-form upper bound of it). ``reconstruction``: the mean squared change made by purifying. ``prior``:
        -log p(z) in nats at the mean of q(z|x).
    """

    image_shape: tuple[int, int, int]
    channels: int = 32
    depth: int = 2
    latent: int = 64
    spatial: bool = False
    blocks: int = 0
    sample: bool = False
    score: Literal["elbo", "reconstruction", "prior"] = "elbo"

    def __post_init__(self) -> None:
        if min(self.image_shape) < 1 or min(self.channels, self.depth, self.latent) < 1:
            raise ConfigError(f"image_shape, channels, depth and latent must be positive, got {self}")
        if not 0 <= self.blocks <= MAX_BLOCKS:
            raise ConfigError(f"blocks must be from 0 to {MAX_BLOCKS}, got {self.blocks}")
        height, width = self.image_shape[1:]
        if self.depth > MAX_DEPTH or max(height, width) > MAX_SIDE:
            raise ConfigError(
                f"expected a depth of at most {MAX_DEPTH} and images of at most {MAX_SIDE} pixels a side, got "
                f"depth {self.depth} and {height}x{width}"
            )
        if height % 2**self.depth or width % 2**self.depth:
            raise ConfigError(
                f"images of {height}x{width} cannot be halved {self.depth} times; lower depth, or resize the "
                f"images to multiples of {2**self.depth}"
            )
        if self._weights() > MAX_WEIGHTS:
            raise ConfigError(
                f"these options give {self._weights():.3g} weights, expected at most {MAX_WEIGHTS:.0e}; "
                "lower channels or latent, raise depth, or set spatial=true"
            )

    def _weights(self) -> int:
        """The number of weights of encoder and decoder, without biases."""
        colours, height, width = self.image_shape
        widths = layer_widths(self.channels, self.depth)
        pixels = 1 if self.spatial else (height >> self.depth) * (width >> self.depth)
        convolutions = 9 * colours * widths[0] + 16 * sum(inner * outer for inner, outer in pairwise(widths))
        wide = EXPANSION * widths[-1] if self.blocks else widths[-1]
        blocks = (self.blocks * (2 * EXPANSION + 9) + EXPANSION) * widths[-1] ** 2 if self.blocks else 0
        return 2 * convolutions + blocks + (2 * wide + widths[-1]) * self.latent * pixels


class Variational(Purifier):
    """Encodes to q(z|x) = N(mean, diag(variance)), moves z toward the prior, and decodes it.

    The decoder's likelihood is Bernoulli for each value in [0, 1] (Kingma & Welling 2014, appendix C.1). Subclasses
    add the prior.
    """

    Config = VariationalConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"
    config: VariationalConfig

    def __init__(self, config: VariationalConfig) -> None:
        super().__init__(config)
        size = (config.image_shape, config.channels, config.depth, config.latent, config.spatial)
        self.encoder, self.decoder = Encoder(*size, config.blocks), Decoder(*size)

    @abstractmethod
    def log_prior(self, latent: Tensor) -> Tensor:
        """log p(z) in nats, (N,), for z (N, *latent_shape)."""

    @abstractmethod
    def prior_gradient(self, latent: Tensor) -> Tensor:
        """The gradient of ``log_prior``, (N, *latent_shape), from plain operators, because it is exported."""

    @abstractmethod
    def sample_prior(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """Draws (N, *latent_shape) from p(z), from standard normal (N, *latent_shape) and uniform (N,) numbers."""

    @abstractmethod
    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)) in nats, or a closed-form upper bound of it, (N,)."""

    @abstractmethod
    def training_kl(self, mean: Tensor, log_variance: Tensor, latent: Tensor, labels: Tensor | None) -> Tensor:
        """The KL term of the negative ELBO that training minimises, (N,), where ``latent`` is a draw from q(z|x)."""

    def settle(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The latent to decode, moved toward the prior from one of q(z|x); ``log_variance`` is q's."""
        return mean

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

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (N, *latent_shape)."""
        check_shape(pixels, name="pixels", shape=self.config.image_shape)
        mean, log_variance = self.encoder(pixels)
        # The results are summed and exponentiated later, so they must not stay in torch.autocast's half precision.
        return mean.to(pixels.dtype), log_variance.to(pixels.dtype)

    def latent_of(self, pixels: Tensor) -> Tensor:
        """The mean of q(z|x), settled: (N, *latent_shape)."""
        return self.settle(*self.encode(pixels))

    def decoded(self, latent: Tensor) -> Tensor:
        """The image of a latent (N, *latent_shape): (N, C, H, W) in [0, 1]."""
        return torch.sigmoid(self.logits(latent))

    def logits(self, latent: Tensor) -> Tensor:
        """The decoder's output (N, C, H, W) for a latent (N, *latent_shape), before the sigmoid."""
        logits: Tensor = self.decoder(latent)
        return logits.to(latent.dtype)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode z = mean + std * noise (equation 10, L = 1), settled; without noise, the mean of q(z|x)."""
        mean, log_variance = self.encode(pixels)
        latent = reparameterised(mean, log_variance, noise)
        return self.decoded(self.settle(latent, log_variance))

    def loss(
        self, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The two terms of the negative ELBO (equation 10), in nats per image, means over the batch."""
        mean, log_variance = self.encode(pixels)
        latent = reparameterised(mean, log_variance, noise)
        kl = self.training_kl(mean, log_variance, latent, labels)
        return _terms(self.logits(latent), target, kl)

    def purify_and_loss(
        self, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both from one pass; here the loss, too, settles the latent before decoding it, as purify does."""
        mean, log_variance = self.encode(pixels)
        latent = reparameterised(mean, log_variance, noise)
        logits = self.logits(self.settle(latent, log_variance))
        kl = self.training_kl(mean, log_variance, latent, labels)
        return torch.sigmoid(logits), _terms(logits, target, kl)

    def score(self, pixels: Tensor) -> Tensor:
        """The score that ``config.score`` selects, (N,), without noise."""
        return self.purify_and_score(pixels)[1]

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both from one pass; with noise there is a second decoding, because the score uses none."""
        mean, log_variance = self.encode(pixels)
        logits = self.logits(self.settle(mean, log_variance))
        purified = torch.sigmoid(logits)
        if self.config.score == "prior":
            score = -self.log_prior(mean)
        elif self.config.score == "reconstruction":
            score = (purified - pixels).square().flatten(1).mean(1)
        else:
            score = bernoulli_nats(logits, pixels) + self.kl(mean, log_variance)
        if noise is not None:
            latent = self.settle(reparameterised(mean, log_variance, noise), log_variance)
            purified = self.decoded(latent)
        return purified, score


def _terms(logits: Tensor, target: Tensor, kl: Tensor) -> dict[str, Tensor]:
    return {"reconstruction": bernoulli_nats(logits, target).mean(), "kl": kl.mean()}


def reparameterised(mean: Tensor, log_variance: Tensor, noise: Tensor | None) -> Tensor:
    """z = mean + std * noise; the mean without noise."""
    return mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise


def bernoulli_nats(logits: Tensor, target: Tensor) -> Tensor:
    """-log p(target | z) in nats, (N,), for logits and target (N, C, H, W)."""
    # F.binary_cross_entropy_with_logits becomes infinite in ONNX where a pixel is certain.
    return (F.softplus(logits) - logits * target).flatten(1).sum(1)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag(exp(log_variance))) || N(0, I)) in nats, (N,): Kingma & Welling 2014, appendix B."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def in_full_precision(method: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorate a method so torch.autocast does not touch its linear algebra."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        place = next(part.device.type for part in args if isinstance(part, Tensor))
        if not torch.is_autocast_enabled(place):  # entering the context would show up in an exported graph
            return method(*args, **kwargs)
        with torch.autocast(place, enabled=False):
            return method(*args, **kwargs)

    return run
