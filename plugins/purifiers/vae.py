"""Purifier ``vae``: a convolutional variational autoencoder (Kingma & Welling 2014) with a N(0, I) prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from purifier.errors import ConfigError

from ._variational import Variational, kl_to_standard_normal
from ._variational_config import VariationalConfig


@dataclass(frozen=True)
class VaeConfig(VariationalConfig):
    """The options of ``VariationalConfig``, and these.

    Parameters
    ----------
    free_nats
        How far each dimension of the latent may be from the prior at no cost in training: the KL divergence in nats,
        averaged over the batch (and over the positions of a map), below which it is not reduced further (Kingma et al.
        2016, appendix C.8, with groups of one dimension). A remedy for posterior collapse.
    """

    free_nats: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.free_nats < math.inf:
            raise ConfigError(f"vae: free_nats must be a number of at least 0, got {self.free_nats}")


class Vae(Variational):
    """Encodes to q(z|x), takes its mean or a sample z, and decodes it."""

    Config = VaeConfig
    config: VaeConfig

    def log_prior(self, latent: Tensor) -> Tensor:
        """log N(z | 0, I)."""
        flat = latent.flatten(1)
        return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))

    def prior_gradient(self, latent: Tensor) -> Tensor:
        """-z."""
        return -latent

    def sample_prior(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """The normal numbers themselves."""
        return normal

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The exact KL divergence."""
        return kl_to_standard_normal(mean, log_variance)

    def training_kl(self, mean: Tensor, log_variance: Tensor, latent: Tensor, labels: Tensor | None) -> Tensor:
        """The exact KL divergence, which does not depend on the draw; with ``free_nats``, the same for all images."""
        if not self.config.free_nats:
            return kl_to_standard_normal(mean, log_variance)
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        others = [place for place in range(nats.ndim) if place != 1]
        paid = nats.mean(others).clamp(min=self.config.free_nats).sum()
        return (paid * nats[0, 0].numel()).expand(len(nats))
