"""Purifier ``gmvae``: a VAE whose prior is a Gaussian mixture, toward which a latent is moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purifier.data.images import ImageData
from purifier.errors import ConfigError, TrainingError

from ._mixture import Mixture
from ._variational import (
    Variational,
    VariationalConfig,
    in_full_precision,
    kl_to_standard_normal,
    reparameterised,
)

STRONGEST = 1e4
"""Far beyond it the rounding of float32 shows in the latent."""
LARGEST = 2**22
"""Most numbers in the covariances: they are multiplied out for every image."""
FIT_IMAGES = 10_000
"""Most latents that expectation-maximisation sees: its time grows with them."""


@dataclass(frozen=True)
class GmvaeConfig(VariationalConfig):
    """Shape, size and prior; the fields of ``vae`` and these.

    Parameters
    ----------
    components
        Gaussians in the prior.
    strength
        How far purification follows the prior: the mixture's covariances are divided by it. 0 is ``vae``, 1 the
        product of q(z|x) and the prior.
    labelled
        One component a class, learned with the labels 0 to ``components - 1``.
    floor
        Least value on the diagonals of the covariances' Cholesky factors.
    pretrain
        Share of the epochs before the mixture is fitted, with N(0, I) as the prior.
    warmup
        Share of the epochs, from the fit on, over which the mixture's KL term grows to its full weight.
    """

    components: int = 10
    strength: float = 1.0
    labelled: bool = False
    floor: float = 0.03
    pretrain: float = 0.4
    warmup: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spatial:
            raise ConfigError("gmvae has a latent vector, its covariances are full; leave spatial out, or take vae")
        if self.components < 1 or self.components * self.latent**2 > LARGEST:
            raise ConfigError(
                f"gmvae: expected 1 or more components and components * latent**2 <= {LARGEST}, got "
                f"{self.components} and latent {self.latent}; lower one of them"
            )
        if not 0 <= self.strength <= STRONGEST:
            raise ConfigError(f"gmvae: strength must be from 0 to {STRONGEST:g}, got {self.strength:.3g}")
        if not 0 < self.floor < 1:
            raise ConfigError(f"gmvae: floor must be in (0, 1), got {self.floor}")
        if not (0 <= self.pretrain <= 1 and 0 <= self.warmup <= 1):
            raise ConfigError(
                f"gmvae: pretrain and warmup are shares of the epochs in [0, 1], got {self.pretrain} and {self.warmup}"
            )


class Gmvae(Variational):
    """Encodes to q(z|x), takes the mean of the product of q and the mixture, decodes.

    With ``sample`` the product is that of the prior and q moved to the sample.

    Trained in three stages: the prior is N(0, I); expectation-maximisation fits the mixture to the latents; then both
    learn together, the KL divergence (by one sample, equation 2 of Kingma & Welling 2014) growing to its weight.
    """

    Config = GmvaeConfig
    config: GmvaeConfig
    fitted_in: Tensor

    def __init__(self, config: GmvaeConfig) -> None:
        super().__init__(config)
        self.prior = Mixture(config.components, config.latent, config.floor)
        self.uses_labels = config.labelled
        # In the state, so that a run that goes on knows its stage: the epoch of the fit, 0 before it.
        self.register_buffer("fitted_in", torch.zeros((), dtype=torch.int64))
        self._kl_weight = 1.0

    def begin_epoch(self, epoch: int, epochs: int, data: ImageData) -> None:
        """Fit the mixture when its epoch has come, and set the weight of the KL term.

        Raises
        ------
        TrainingError
            There are too few images for the components, or their labels are not the components'.
        """
        if epoch == 1:
            self._check_data(data)
        first = min(1 + math.ceil(self.config.pretrain * epochs), epochs)
        if not self.fitted_in and epoch >= first:
            self._fit(data)
            self.fitted_in.fill_(epoch)
        growing = self.config.warmup * epochs
        done = epoch - int(self.fitted_in) + 1
        self._kl_weight = min(1.0, done / (growing + 1)) if self.fitted_in else 1.0

    def figures(self) -> dict[str, float]:
        """How many components live: pi_k > 0.1 / K."""
        return {"live_components": float(self.prior.live)}

    @in_full_precision
    def training_kl(self, mean: Tensor, log_variance: Tensor, latent: Tensor, labels: Tensor | None) -> Tensor:
        """That of N(0, I) until the mixture is fitted, then the mixture's by one sample, at its weight.

        ``labels`` (N,) name each image's component if ``labelled``.
        """
        if not self.fitted_in:
            return kl_to_standard_normal(mean, log_variance)
        return self._kl_weight * self._sampled_kl(mean, log_variance, latent, labels)

    def classify(self, pixels: Tensor) -> Tensor:
        """log p(k|z) at the mean of q(z|x), (N, K): which class's component an image belongs to.

        Raises
        ------
        ConfigError
            The components are no classes.
        """
        if not self.config.labelled:
            raise ConfigError("this gmvae's components are no classes; train it with labelled=true to classify with it")
        return self.prior.log_components(self.encode(pixels)[0]).log_softmax(1)

    @in_full_precision
    def settle(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The mean of N(mean, diag(variance)) times the prior of the configured strength."""
        if self.config.strength == 0:
            return mean
        return self.prior.product_mean(mean, log_variance, self.config.strength)

    def log_prior(self, latent: Tensor) -> Tensor:
        """log sum_k pi_k N(z | mu_k, Sigma_k)."""
        return self.prior.log_prob(latent)

    def prior_gradient(self, latent: Tensor) -> Tensor:
        """The gradient of :meth:`log_prior`."""
        return self.prior.log_prob_gradient(latent)

    def sample_prior(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """Each a draw of the component that its uniform number chooses."""
        return self.prior.sample(normal, uniform)

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """An upper bound of the KL divergence in closed form: see :meth:`Mixture.expected_log_prob`."""
        entropy = 0.5 * (log_variance + 1 + math.log(2 * math.pi)).sum(1)
        return -entropy - self.prior.expected_log_prob(mean, log_variance)

    def _sampled_kl(self, mean: Tensor, log_variance: Tensor, latent: Tensor, labels: Tensor | None) -> Tensor:
        """log q(z|x) - log p(z), or - log p(z, k) where labels give k, (N,)."""
        squares = (latent - mean).square() * torch.exp(-log_variance)
        posterior = -0.5 * (squares + log_variance + math.log(2 * math.pi)).sum(1)
        joint = self.prior.log_components(latent)
        if not self.config.labelled:
            return posterior - joint.logsumexp(1)
        if labels is None:
            raise ConfigError("gmvae: labelled=true learns from labels, got none")
        return posterior - joint.gather(1, labels.unsqueeze(1)).squeeze(1)

    def _check_data(self, data: ImageData) -> None:
        components = self.config.components
        if components > min(len(data), FIT_IMAGES):
            raise TrainingError(
                f"gmvae: {components} components need at least as many images, got {min(len(data), FIT_IMAGES)} to "
                "fit; lower components"
            )
        if not self.config.labelled:
            return
        highest = int(data.labels.max())
        if highest >= components:
            raise TrainingError(
                f"gmvae: labelled=true needs a component for each class, the labels go up to {highest}, "
                f"components is {components}; set components={highest + 1}"
            )
        counts = torch.bincount(data.labels[data.spread(FIT_IMAGES)], minlength=components)
        rarest = int(counts.argmin())
        if counts[rarest] < 2:
            raise TrainingError(
                f"gmvae: labelled=true needs at least 2 images of each class, got {counts[rarest]} of class {rarest} "
                f"among the {min(len(data), FIT_IMAGES)} it is fitted to; give more images, or set "
                "components to the number of classes"
            )

    @torch.no_grad()
    def _fit(self, data: ImageData) -> None:
        """Fit the mixture to draws of q(z|x)."""
        chosen = data.spread(FIT_IMAGES)
        place = self.prior.means.device
        latents, labels = [], []
        for start in range(0, len(chosen), 500):
            pixels, names = data.batch(chosen[start : start + 500])
            mean, log_variance = self.encode(pixels.to(place))
            latents.append(reparameterised(mean, log_variance, torch.randn(mean.shape).to(mean)))
            labels.append(names.to(place))
        if self.config.labelled:
            self.prior.fit_classes(torch.cat(latents), torch.cat(labels))
        else:
            self.prior.fit(torch.cat(latents), seed=int(torch.randint(2**31, ())))
