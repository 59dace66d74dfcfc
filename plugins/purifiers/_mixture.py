"""A Gaussian mixture with full covariances: density, product with a Gaussian, fit to data."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifier.errors import TrainingError

from ._schur import solve_spd

REGULARISATION = 1e-4
"""Added to the diagonals of the fitted covariances."""


class Mixture(nn.Module):
    """p(z) = sum_k pi_k N(z | mu_k, Sigma_k) for z of D numbers; initially every component is N(0, I).

    It stores W_k, the inverse of the Cholesky factor L_k of Sigma_k, so a density takes one matrix product:
    ``|W_k (z - mu_k)|^2``. L_k's diagonal is a softplus above ``floor``, and pi_k a softmax above 0.01 / K, so no
    component can become singular or vanish for good.

    Parameters
    ----------
    components, size
        K and D.
    floor
        Smallest value on the diagonal of L_k.
    """

    eye: Tensor
    below: Tensor

    def __init__(self, components: int, size: int, floor: float) -> None:
        super().__init__()
        self.components, self.size, self.floor = components, size, floor
        self.weights = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.zeros(components, size))
        self.off_diagonal = nn.Parameter(torch.zeros(components, size, size))
        self.diagonal = nn.Parameter(inverse_softplus(torch.full((components, size), 1 - floor)))
        self.register_buffer("eye", torch.eye(size), persistent=False)
        self.register_buffer("below", torch.ones(size, size).tril(-1), persistent=False)

    @property
    def log_pi(self) -> Tensor:
        """log pi, (K,)."""
        floor = 0.01 / self.components
        return (floor + (1 - 0.01) * self.weights.softmax(0)).log()

    @property
    def scales(self) -> Tensor:
        """The diagonals of the Cholesky factors L_k, (K, D)."""
        return F.softplus(self.diagonal) + self.floor

    @property
    def whitening(self) -> Tensor:
        """W_k = inverse of L_k, (K, D, D), lower triangular, with the inverse of L_k's diagonal on its diagonal."""
        return self.off_diagonal * self.below + self.eye / self.scales.unsqueeze(2)

    @property
    def live(self) -> int:
        """How many components have pi_k > 0.1 / K."""
        return int((self.log_pi.exp() > 0.1 / self.components).sum())

    def log_components(self, z: Tensor) -> Tensor:
        """log pi_k + log N(z | mu_k, Sigma_k) in nats, (N, K), for z (N, D)."""
        whitened = self._whitened(z, self.whitening)
        return self._log_joint(whitened.square().sum(2))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (N,), for z (N, D)."""
        return self.log_components(z).logsumexp(1)

    def log_prob_gradient(self, z: Tensor) -> Tensor:
        """The gradient of ``log_prob``, (N, D): -sum_k p(k|z) W_k^T W_k (z - mu_k)."""
        whitening = self.whitening
        whitened = self._whitened(z, whitening)
        share = self._log_joint(whitened.square().sum(2)).softmax(1)
        pulled = (share.unsqueeze(2) * whitened).flatten(1) @ whitening.reshape(-1, self.size)
        return -pulled

    def expected_log_prob(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """A lower bound of E log p(z) for z ~ N(mean, diag(exp(log_variance))), (N,); exact for one component.

        Jensen's inequality for the convex logsumexp over E log pi_k N(z | mu_k, Sigma_k) (Hershey & Olsen 2007,
        equation 20, with one component on the left).
        """
        whitening = self.whitening
        traces = log_variance.exp() @ whitening.square().sum(1).mT
        squares = self._whitened(mean, whitening).square().sum(2)
        return self._log_joint(squares + traces).logsumexp(1)

    def product_mean(self, mean: Tensor, log_variance: Tensor, strength: float) -> Tensor:
        """The mean of the product of N(mean, S), S = diag(exp(log_variance)), and the mixture, (N, D).

        Each component, its covariance divided by ``strength``, contributes a Gaussian to the product, with mean
        ``c_k = m + s S (Sigma_k + s S)^-1 (mu_k - m)`` and weight ``pi_k N(m | mu_k, Sigma_k / s + S)``
        (Bishop 2006, equations 2.113-2.117); Woodbury's identity leaves one system, I + s R Sigma_k^-1 R with
        R = sqrt(S), whose eigenvalues are 1 or more. With ``strength`` 0 the result is ``mean``.
        """
        spread, whitening = torch.exp(0.5 * log_variance), self.whitening
        whitened = -self._whitened(mean, whitening)
        scaled = whitening * spread[:, None, None, :]
        right = scaled.mT @ whitened.unsqueeze(3)
        solved, log_det = solve_spd(self.eye + strength * (scaled.mT @ scaled), right)
        squares = whitened.square().sum(2) - strength * (right * solved).sum((2, 3))
        weight = (self._log_joint(strength * squares) - 0.5 * log_det).softmax(1)
        return mean + strength * spread * (weight.unsqueeze(2) * solved.squeeze(3)).sum(1)

    def sample(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """Draws (N, D) from p(z), made from standard normal (N, D) and uniform (N,) numbers."""
        shares = self.log_pi.exp().cumsum(0)[:-1].contiguous()
        chosen = torch.bucketize(uniform, shares)
        # At least float32: LAPACK has no half precision.
        factors, wide = self.whitening[chosen], torch.promote_types(normal.dtype, torch.float32)
        spread: Tensor = torch.linalg.solve_triangular(factors.to(wide), normal.to(wide).unsqueeze(2), upper=False)
        return self.means[chosen] + spread.squeeze(2).to(normal.dtype)

    @torch.no_grad()
    def fit(self, z: Tensor, seed: int) -> None:
        """Fit full covariances to z (N, D) with scikit-learn's expectation-maximisation.

        Raises
        ------
        TrainingError
            There are fewer points than components, or they are not finite.
        """
        from sklearn.exceptions import ConvergenceWarning  # takes a second to import, and only training needs it
        from sklearn.mixture import GaussianMixture

        fitted = GaussianMixture(self.components, reg_covar=REGULARISATION, random_state=seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # training continues from here anyway
                fitted.fit(z.double().cpu().numpy())
        except ValueError as error:
            raise TrainingError(
                f"the mixture of {self.components} components cannot be fitted to {len(z)} latents: "
                f"{str(error).splitlines()[0]} lower components, or give more images"
            ) from error
        self._set(*(torch.from_numpy(part) for part in (fitted.weights_, fitted.means_, fitted.precisions_cholesky_)))

    @torch.no_grad()
    def fit_classes(self, z: Tensor, labels: Tensor) -> None:
        """Fit each component to the points of its class: z (N, D), labels (N,) from 0 to K - 1.

        Raises
        ------
        TrainingError
            A class has fewer than two points, or a singular covariance.
        """
        shares, means, precisions = [], [], []
        for label in range(self.components):
            points = z[labels == label].double()
            if len(points) < 2:
                raise TrainingError(
                    f"expected at least 2 images of class {label} to fit its component to, got {len(points)}; give "
                    "more images, or set components to the number of classes"
                )
            covariance = torch.cov(points.T).reshape(self.size, self.size)
            covariance = covariance + REGULARISATION * torch.eye(self.size, dtype=z.dtype, device=z.device)
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if failed:
                raise TrainingError(f"the latents of class {label} have a singular covariance; give more images")
            shares.append(torch.tensor(len(points) / len(z)))
            means.append(points.mean(0))
            precisions.append(torch.linalg.inv(factor).T)
        self._set(torch.stack(shares), torch.stack(means), torch.stack(precisions))

    def _set(self, pi: Tensor, means: Tensor, precision_factors: Tensor) -> None:
        """Set pi (K,), means (K, D) and upper triangles U_k (K, D, D) with Sigma_k^-1 = U_k U_k^T."""
        floor = 0.01 / self.components
        self.weights.copy_((pi - floor).clamp_min(1e-6).log())
        self.means.copy_(means)
        scales = 1 / precision_factors.diagonal(dim1=1, dim2=2)
        raised = scales.clamp_min(self.floor + 1e-3)
        # Whole rows of W_k are divided by their scales: raising only the diagonal would rotate the component.
        rows = precision_factors.mT * (scales / raised).unsqueeze(2)
        self.off_diagonal.copy_(rows.to(self.below) * self.below)
        self.diagonal.copy_(inverse_softplus(raised - self.floor))

    def _whitened(self, z: Tensor, whitening: Tensor) -> Tensor:
        """W_k (z - mu_k), (N, K, D)."""
        shifts = (whitening @ self.means.unsqueeze(2)).squeeze(2)
        return (z @ whitening.reshape(-1, self.size).mT).reshape(-1, self.components, self.size) - shifts

    def _log_joint(self, squares: Tensor) -> Tensor:
        """log pi_k + log N, (N, K), from squared Mahalanobis distances (N, K)."""
        log_det = 2 * self.scales.log().sum(1)
        return self.log_pi - 0.5 * (squares + log_det + self.size * math.log(2 * math.pi))


def inverse_softplus(value: Tensor) -> Tensor:
    """x with softplus(x) = value, for value > 0."""
    return value + torch.log(-torch.expm1(-value))
