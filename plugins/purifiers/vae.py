"""Purifier ``vae``: a convolutional variational autoencoder (Kingma & Welling 2014) with a N(0, I) prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ._variational import Variational, VariationalConfig, kl_to_standard_normal


@dataclass(frozen=True)
class VaeConfig(VariationalConfig):
    """The options of ``VariationalConfig``; the prior N(0, I) has none."""


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
        """The exact KL divergence, which does not depend on the draw."""
        return kl_to_standard_normal(mean, log_variance)
