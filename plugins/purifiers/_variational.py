"""Shared by ``vae`` and ``gmvae``: encoder, decoder, the ELBO, and how unusual an image is."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional as F

from purifier.contracts.bounded import TrainingBounds
from purifier.contracts.purifier import Purifier, image_shape_of
from purifier.data.pixels import check_shape, into_range
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._autoencoder import Decoder, Encoder, padded
from ._bounded_encoder import BoundedEncoder
from ._variational_config import VariationalConfig

P = ParamSpec("P")
SPREAD = 0.5
"""Standard deviation of the Gaussian likelihood of purifiers with a skip: that of a Bernoulli variable at 1/2."""


class Variational(Purifier):
    """Encodes to q(z|x) = N(mean, diag(variance)), moves z toward the prior, and decodes it.

    The decoder's likelihood is Bernoulli for each value in [0, 1] (Kingma & Welling 2014, appendix C.1); with ``skip``,
    Gaussian. Subclasses add the prior.
    """

    Config = VariationalConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"
    config: VariationalConfig

    def __init__(self, config: VariationalConfig) -> None:
        super().__init__(config)
        self.any_size = config.spatial
        self.no_latent_space = "its decoder also needs the image (skip=true)" if config.skip else None
        size = (config.image_shape[0], config.map_size, config.channels, config.depth, config.latent, config.spatial)
        self.encoder: Encoder | BoundedEncoder
        if config.encoder == "bounded":
            sizes = (config.channels, config.depth, config.latent, config.classes)
            self.encoder = BoundedEncoder(config.image_shape[0], config.map_size, *sizes)
        else:
            self.encoder = Encoder(*size, config.blocks, config.stem, config.norm, config.context)
        self.decoder = Decoder(*size, config.stem, quiet=config.skip)

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
        """(latent,), or (latent, h, w) if spatial, for images of ``image_shape``."""
        return (self.config.latent, *self.config.map_size) if self.config.spatial else (self.config.latent,)

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
        """Standard normal noise (N, *latent_shape) when training or if ``sample``; else None."""
        if not (self.training or self.config.sample):
            return None
        shape = self.latent_shape
        if self.config.spatial:
            shape = (shape[0], *(-(-side // self.config.granularity) for side in pixels.shape[-2:]))
        return generator.normal(shape, pixels)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (N, *latent_shape)."""
        check_shape(pixels, name="pixels", shape=image_shape_of(self))
        mean, log_variance = self.encoder(padded(pixels, self.config.granularity))
        # The results are summed and exponentiated later, so they must not stay in torch.autocast's half precision.
        return mean.to(pixels.dtype), log_variance.to(pixels.dtype)

    def training_bounds(
        self, pixels: Tensor, labels: Tensor, eps: float, points: Tensor | None = None
    ) -> TrainingBounds:
        """Scores of classes that the encoder gives ``points``, and bounds within a linf distance ``eps`` of ``pixels``.

        Raises
        ------
        ConfigError
            The encoder has no bounds.
        """
        if not isinstance(self.encoder, BoundedEncoder):
            raise ConfigError(f"{type(self).__name__} has no bounds: its encoder is free; set encoder=bounded")
        with torch.autocast(pixels.device.type, enabled=False):
            given, around = (
                padded(part, self.config.granularity) for part in (pixels if points is None else points, pixels)
            )
            return self.encoder.training_bounds(around, labels, eps, given)

    def latent_of(self, pixels: Tensor) -> Tensor:
        """The mean of q(z|x), settled: (N, *latent_shape)."""
        return self.settle(*self.encode(pixels))

    def decoded(self, latent: Tensor) -> Tensor:
        """The image of a latent (N, *latent_shape): (N, C, H, W) in [0, 1].

        That of a latent map of another size is not cropped.

        Raises
        ------
        ConfigError
            The decoder also needs the image (``skip``).
        """
        if self.no_latent_space:
            raise ConfigError(f"{type(self).__name__} has no latent space: {self.no_latent_space}")
        logits = self.decoder(latent).to(latent.dtype)
        if latent.shape[1:] == self.latent_shape:
            logits = _cropped(logits, self.config.image_shape)
        return torch.sigmoid(logits)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode z = mean + std * noise (equation 10, L = 1), settled; without noise, the mean of q(z|x)."""
        mean, log_variance = self.encode(pixels)
        latent = reparameterised(mean, log_variance, noise)
        return self._image(self._output(self.settle(latent, log_variance), pixels), pixels)

    def loss(
        self, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The two terms of the negative ELBO (equation 10), in nats per value of an image, means over the batch."""
        mean, log_variance = self.encode(pixels)
        latent = reparameterised(mean, log_variance, noise)
        kl = self.training_kl(mean, log_variance, latent, labels)
        return self._terms(self._output(latent, pixels), pixels, target, kl)

    def purify_and_loss(
        self, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both from one pass; here the loss, too, settles the latent before decoding it, as purify does."""
        mean, log_variance = self.encode(pixels)
        latent = reparameterised(mean, log_variance, noise)
        output = self._output(self.settle(latent, log_variance), pixels)
        kl = self.training_kl(mean, log_variance, latent, labels)
        return self._image(output, pixels), self._terms(output, pixels, target, kl)

    def score(self, pixels: Tensor) -> Tensor:
        """The score that ``config.score`` selects, (N,), without noise."""
        return self.purify_and_score(pixels)[1]

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both from one pass; with noise there is a second decoding, because the score uses none."""
        mean, log_variance = self.encode(pixels)
        output = self._output(self.settle(mean, log_variance), pixels)
        purified = self._image(output, pixels)
        if self.config.score == "reconstruction":
            score = (purified - pixels).square().flatten(1).mean(1)
        else:
            if self.config.score == "prior":
                nats = -self.log_prior(mean)
            else:
                nats = self._nats(output, pixels, pixels) + self.kl(mean, log_variance)
            score = self._for_usual_size(nats, pixels)
        if noise is not None:
            latent = self.settle(reparameterised(mean, log_variance, noise), log_variance)
            purified = self._image(self._output(latent, pixels), pixels)
        return purified, score

    def _output(self, latent: Tensor, pixels: Tensor) -> Tensor:
        """The decoder's output of the size of ``pixels``: logits of the image, or with ``skip`` its correction."""
        return _cropped(self.decoder(latent).to(latent.dtype), pixels.shape)

    def _image(self, output: Tensor, pixels: Tensor) -> Tensor:
        return into_range(pixels + output) if self.config.skip else torch.sigmoid(output)

    def _nats(self, output: Tensor, pixels: Tensor, target: Tensor) -> Tensor:
        """-log p(target | z) in nats, (N,)."""
        return gaussian_nats(pixels + output, target) if self.config.skip else bernoulli_nats(output, target)

    def _terms(self, output: Tensor, pixels: Tensor, target: Tensor, kl: Tensor) -> dict[str, Tensor]:
        values = target[0].numel()
        return {"reconstruction": self._nats(output, pixels, target).mean() / values, "kl": kl.mean() / values}

    def _for_usual_size(self, nats: Tensor, pixels: Tensor) -> Tensor:
        """Nats (N,) of these images in proportion to the size of ``image_shape``, so that one threshold serves all."""
        height, width = pixels.shape[-2:]
        usual = self.config.image_shape[1] * self.config.image_shape[2]
        if type(height) is int and type(width) is int and height * width == usual:
            return nats
        return nats * usual / (height * width)


def _cropped(images: Tensor, shape: Sequence[int]) -> Tensor:
    """The upper left corner of images (N, C, H, W) that has the last two sizes of ``shape``."""
    height, width = shape[-2:]
    if type(height) is int and type(width) is int and tuple(images.shape[-2:]) == (height, width):
        return images
    return images[..., :height, :width]


def reparameterised(mean: Tensor, log_variance: Tensor, noise: Tensor | None) -> Tensor:
    """z = mean + std * noise; the mean without noise."""
    return mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise


def bernoulli_nats(logits: Tensor, target: Tensor) -> Tensor:
    """-log p(target | z) in nats, (N,), for logits and target (N, C, H, W)."""
    # F.binary_cross_entropy_with_logits becomes infinite in ONNX where a pixel is certain.
    return (F.softplus(logits) - logits * target).flatten(1).sum(1)


def gaussian_nats(mean: Tensor, target: Tensor) -> Tensor:
    """-log N(target | mean, SPREAD**2 I) in nats, (N,), for images (N, C, H, W)."""
    squares = (target - mean).square() / (2 * SPREAD**2)
    return (squares + math.log(SPREAD * math.sqrt(2 * math.pi))).flatten(1).sum(1)


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
