"""Purifier ``gmvae``: a VAE that moves latents toward its prior, a Gaussian mixture."""

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
    in_full_precision,
    kl_to_standard_normal,
    reparameterised,
)
from ._variational_config import VariationalConfig

MAX_STRENGTH = 1e4
"""Far beyond this, float32 rounding shows in the latent."""
MAX_COVARIANCE_VALUES = 2**22
"""Limit on the number of covariance entries, which are multiplied out for every image."""
FIT_IMAGES = 10_000
"""Limit on the latents for expectation-maximisation, whose time grows with them."""
FITTED_BEFORE = -(2**40)
"""In place of the epoch of the fit if another run fitted the mixture."""
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class GmvaeConfig(VariationalConfig):
    """Shape, size and prior: the options of ``vae``, and these.

    Parameters
    ----------
    components
        Gaussians in the prior.
    strength
        How strongly purification follows the prior: the mixture's covariances are divided by it. 0 works like
        ``vae``; 1 takes the product of q(z|x) and the prior.
    labelled
        Use one component per class, trained with labels from 0 to ``components - 1``.
    floor
        Smallest value on the diagonals of the covariances' Cholesky factors.
    pretrain
        Fraction of the epochs before the mixture is fitted, with N(0, I) as the prior.
    warmup
        Fraction of the epochs, after the fit, over which the mixture's KL term grows to its full weight.
    """

    components: int = 10
    strength: float = 1.0
    labelled: bool = False
    floor: float = 0.03
    pretrain: float = 0.4
    warmup: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spatial and self.labelled:
            raise ConfigError(
                "gmvae: labelled=true needs a latent vector, because no position of a map alone shows the class; leave "
                "spatial or labelled out"
            )
        if self.components < 1 or self.components * self.latent**2 > MAX_COVARIANCE_VALUES:
            raise ConfigError(
                f"gmvae: expected 1 or more components and components * latent**2 <= {MAX_COVARIANCE_VALUES}, got "
                f"{self.components} and latent {self.latent}; lower one of them"
            )
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise ConfigError(f"gmvae: strength must be from 0 to {MAX_STRENGTH:g}, got {self.strength:.3g}")
        if not 0 < self.floor < 1:
            raise ConfigError(f"gmvae: floor must be in (0, 1), got {self.floor}")
        if not (0 <= self.pretrain <= 1 and 0 <= self.warmup <= 1):
            raise ConfigError(
                f"gmvae: pretrain and warmup must be fractions of the epochs in [0, 1], got {self.pretrain} and "
                f"{self.warmup}"
            )


class Gmvae(Variational):
    """Encodes to q(z|x), takes the mean of the product of q and the mixture, and decodes it.

    With ``sample``, q is first shifted so that its mean is the sample. On a latent map every position is a draw of its
    own from the same mixture, whose covariances are over the map's channels.

    Training has three stages: the prior is N(0, I); expectation-maximisation fits the mixture to the latents; then both
    are trained together, while the KL divergence (from one sample, equation 2 of Kingma & Welling 2014) grows to its
    full weight.
    """

    Config = GmvaeConfig
    config: GmvaeConfig
    fitted_in: Tensor

    def __init__(self, config: GmvaeConfig) -> None:
        super().__init__(config)
        self.prior = Mixture(config.components, config.latent, config.floor)
        self.uses_labels = config.labelled
        # The epoch of the fit, 0 before it; in the state dict so that a resumed run knows its stage.
        self.register_buffer("fitted_in", torch.zeros((), dtype=torch.int64))
        self._kl_weight = 1.0

    def begin_epoch(self, epoch: int, epochs: int, data: ImageData) -> None:
        """Fit the mixture once it is due, and set the weight of the KL term.

        Raises
        ------
        TrainingError
            There are too few images for the components, or the labels do not match the components.
        """
        if epoch == 1:
            self._check_data(data)
            if self.fitted_in > 1:  # by the run that these weights are from: its warm-up is over
                self.fitted_in.fill_(FITTED_BEFORE)
        first = min(1 + math.ceil(self.config.pretrain * epochs), epochs)
        if not self.fitted_in and epoch >= first:
            self._fit(data)
            self.fitted_in.fill_(epoch)
        growing = self.config.warmup * epochs
        done = epoch - int(self.fitted_in) + 1
        self._kl_weight = min(1.0, done / (growing + 1)) if self.fitted_in else 1.0

    def figures(self) -> dict[str, float]:
        """How many components are live: pi_k > 0.1 / K."""
        return {"live_components": float(self.prior.live)}

    @in_full_precision
    def training_kl(self, mean: Tensor, log_variance: Tensor, latent: Tensor, labels: Tensor | None) -> Tensor:
        """The KL divergence to N(0, I) until the mixture is fitted, then to the mixture, from one sample and weighted.

        If ``labelled``, ``labels`` (N,) are the images' components.
        """
        if not self.fitted_in:
            return kl_to_standard_normal(mean, log_variance)
        return self._kl_weight * self._sampled_kl(mean, log_variance, latent, labels)

    def classify(self, pixels: Tensor) -> Tensor:
        """log p(k|z) at the mean of q(z|x), (N, K): to which class's component an image belongs.

        Raises
        ------
        ConfigError
            The components are not classes.
        """
        if not self.config.labelled:
            raise ConfigError("this gmvae's components are not classes; train it with labelled=true to classify")
        return self.prior.log_components(self.encode(pixels)[0]).log_softmax(1)

    @in_full_precision
    def settle(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The mean of the product of N(mean, diag(variance)) and the prior at the configured strength."""
        if self.config.strength == 0:
            return mean
        moved = self.prior.product_mean(_rows(mean), _rows(log_variance), self.config.strength)
        return _like(moved, mean)

    def log_prior(self, latent: Tensor) -> Tensor:
        """log sum_k pi_k N(z | mu_k, Sigma_k)."""
        return _summed(self.prior.log_prob(_rows(latent)), latent)

    def prior_gradient(self, latent: Tensor) -> Tensor:
        """The gradient of ``log_prior``."""
        return _like(self.prior.log_prob_gradient(_rows(latent)), latent)

    def sample_prior(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """Draws from the components that the uniform numbers select."""
        if not self.config.spatial:
            return self.prior.sample(normal, uniform)
        # One uniform number an image: its sequence of fractional parts gives each position one of its own (Weyl 1916).
        places = torch.arange(normal[0, 0].numel(), device=normal.device)
        each = torch.frac(uniform[:, None] + places * GOLDEN).flatten()
        return _like(self.prior.sample(_rows(normal), each.to(normal.dtype)), normal)

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """A closed-form upper bound of the KL divergence: see ``Mixture.expected_log_prob``."""
        entropy = 0.5 * (log_variance + 1 + math.log(2 * math.pi)).flatten(1).sum(1)
        return -entropy - _summed(self.prior.expected_log_prob(_rows(mean), _rows(log_variance)), mean)

    def _sampled_kl(self, mean: Tensor, log_variance: Tensor, latent: Tensor, labels: Tensor | None) -> Tensor:
        """log q(z|x) - log p(z), (N,), or log q(z|x) - log p(z, k) if labels give k."""
        squares = (latent - mean).square() * torch.exp(-log_variance)
        posterior = -0.5 * (squares + log_variance + math.log(2 * math.pi)).flatten(1).sum(1)
        joint = self.prior.log_components(_rows(latent))
        if not self.config.labelled:
            return posterior - _summed(joint.logsumexp(1), latent)
        if labels is None:
            raise ConfigError("gmvae: labelled=true needs labels, got none")
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
                f"gmvae: labelled=true needs a component for each class, but the labels go up to {highest} and "
                f"components is {components}; set components={highest + 1}"
            )
        counts = torch.bincount(data.labels[data.spread(FIT_IMAGES)], minlength=components)
        rarest = int(counts.argmin())
        if counts[rarest] < 2:
            raise TrainingError(
                f"gmvae: labelled=true needs at least 2 images of each class, got {counts[rarest]} of class {rarest} "
                f"among the {min(len(data), FIT_IMAGES)} it is fitted to; give more images, or set components to the "
                "number of classes"
            )

    @torch.no_grad()
    def _fit(self, data: ImageData) -> None:
        """Fit the mixture to draws from q(z|x)."""
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
            rows = _rows(torch.cat(latents))
            chosen_rows = torch.linspace(0, len(rows) - 1, min(len(rows), FIT_IMAGES)).long()
            self.prior.fit(rows[chosen_rows.to(place)], seed=int(torch.randint(2**31, ())))


def _rows(latent: Tensor) -> Tensor:
    """A latent (N, D) as it is, and the positions of a map (N, D, h, w) as rows (N * h * w, D)."""
    return latent if latent.ndim == 2 else latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])


def _like(rows: Tensor, latent: Tensor) -> Tensor:
    """The inverse of ``_rows``: a tensor of the shape of ``latent``."""
    if latent.ndim == 2:
        return rows
    count, size, height, width = latent.shape
    return rows.reshape(count, height, width, size).permute(0, 3, 1, 2)


def _summed(values: Tensor, latent: Tensor) -> Tensor:
    """One value per row of ``_rows(latent)`` -> their sum for each latent, (N,)."""
    return values if latent.ndim == 2 else values.reshape(latent.shape[0], -1).sum(1)
