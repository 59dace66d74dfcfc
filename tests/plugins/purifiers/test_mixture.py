"""The Gaussian mixture against torch.distributions, scipy, dense linear algebra and integrals on a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from purifier.errors import TrainingError
from purifier.plugins.purifiers._mixture import Mixture, inverse_softplus
from purifier.plugins.purifiers._schur import solve_spd

FLOOR = 0.03


def mixture(components: int, size: int, seed: int = 0) -> Mixture:
    """A mixture of correlated, unequal components, in float64."""
    made = Mixture(components, size, FLOOR).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight, scale in ((made.weights, 1.0), (made.means, 2.0), (made.off_diagonal, 0.7), (made.diagonal, 1.0)):
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return made


def points(count: int, size: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(made: Mixture) -> Tensor:
    factors = torch.linalg.inv(made.whitening.detach())
    return factors @ factors.mT


def reference(made: Mixture) -> MixtureSameFamily:
    parts = MultivariateNormal(made.means.detach(), covariance_matrix=covariances(made))
    return MixtureSameFamily(Categorical(probs=made.log_pi.detach().exp()), parts)


def spd(size: int, condition: float, seed: int) -> Tensor:
    """A symmetric matrix whose eigenvalues go from 1 / condition to 1."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(-math.log10(condition), 0, size, dtype=torch.float64)
    return (rotation * values) @ rotation.mT


@pytest.mark.parametrize(("components", "size"), [(1, 1), (3, 2), (5, 7)])
def test_densities_match_torch_and_scipy(components: int, size: int) -> None:
    made, z = mixture(components, size), points(40, size)
    joint = made.log_components(z)
    assert joint.shape == (40, components)
    for k, covariance in enumerate(covariances(made)):
        density = stats.multivariate_normal(made.means[k].detach().numpy(), covariance.numpy())
        expected = torch.from_numpy(np.atleast_1d(density.logpdf(z.numpy()))) + made.log_pi[k]
        torch.testing.assert_close(joint[:, k], expected)
    torch.testing.assert_close(made.log_prob(z), reference(made).log_prob(z))
    assert made.log_pi.exp().sum().item() == pytest.approx(1)


def test_a_new_mixture_is_standard_normal() -> None:
    z = points(20, 3).float()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(Mixture(4, 3, FLOOR).log_prob(z), expected)


def test_the_written_gradient_matches_autograd() -> None:
    made, z = mixture(4, 5), points(30, 5).requires_grad_()
    (expected,) = torch.autograd.grad(made.log_prob(z).sum(), z)
    torch.testing.assert_close(made.log_prob_gradient(z), expected)


@pytest.mark.parametrize("strength", [0.1, 1.0, 7.0])
def test_product_mean_is_the_dense_closed_form(strength: float) -> None:
    made, mean, log_variance = mixture(4, 5), points(20, 5), points(20, 5, seed=2) - 1
    weights, centres = [], []
    for k, covariance in enumerate(covariances(made)):
        wide = covariance / strength + torch.diag_embed(log_variance.exp())
        weights.append(MultivariateNormal(made.means[k], covariance_matrix=wide).log_prob(mean) + made.log_pi[k])
        precision = strength * torch.linalg.inv(covariance)
        total = precision + torch.diag_embed((-log_variance).exp())
        right = precision @ made.means[k] + (-log_variance).exp() * mean
        centres.append(torch.linalg.solve(total, right.unsqueeze(2)).squeeze(2))
    share = torch.stack(weights, 1).softmax(1)
    expected = (share.unsqueeze(2) * torch.stack(centres, 1)).sum(1)
    torch.testing.assert_close(made.product_mean(mean, log_variance, strength), expected)


@pytest.mark.parametrize("size", [1, 2])
def test_product_mean_is_the_integral_of_the_product(size: int) -> None:
    """At strength 1 the product of densities itself, summed over a fine grid."""
    made, means, log_variances = mixture(3, size, seed=4), points(4, size), points(4, size, seed=5) / 2
    axis = torch.linspace(-30, 30, 60_001 if size == 1 else 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * size).reshape(-1, size)
    prior = reference(made).log_prob(grid)
    found = made.product_mean(means, log_variances, 1.0)
    for mean, log_variance, centre in zip(means, log_variances, found, strict=True):
        posterior = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(grid).sum(1)
        weight = (posterior + prior).softmax(0)
        torch.testing.assert_close(centre, weight @ grid, atol=1e-3, rtol=0)


def test_strength_goes_from_the_posterior_to_the_prior() -> None:
    made, mean = mixture(3, 4, seed=6), points(10, 4)
    log_variance = torch.full_like(mean, -2.0)
    assert torch.equal(made.product_mean(mean, log_variance, 0.0), mean)
    near = made.product_mean(mean, log_variance, 1e-6)
    torch.testing.assert_close(near, mean, atol=1e-3, rtol=0)
    far = made.product_mean(mean, log_variance, 1e5)
    shares = MultivariateNormal(made.means.detach(), torch.diag(log_variance[0].exp())).log_prob(mean.unsqueeze(1))
    torch.testing.assert_close(far, (made.log_pi + shares).softmax(1) @ made.means, atol=0.05, rtol=0)
    single = made.float().product_mean(mean.float(), log_variance.float(), 1e5)
    torch.testing.assert_close(single.double(), far, atol=0.03, rtol=0)
    alone = mixture(1, 4, seed=6)
    pulled = torch.stack([alone.product_mean(mean, log_variance, strength) for strength in (0.0, 0.3, 1.0, 3.0)])
    assert (torch.stack([alone.log_prob(z) for z in pulled]).diff(dim=0) > 0).all()


def test_draws_have_the_moments_and_the_distribution_of_the_mixture() -> None:
    made, count = mixture(3, 2, seed=7), 40_000
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    draws = made.sample(normal, torch.rand(count, generator=generator, dtype=torch.float64)).detach()
    pi, means, spreads = made.log_pi.detach().exp(), made.means.detach(), covariances(made)
    mean = pi @ means
    covariance = ((spreads + means.unsqueeze(2) * means.unsqueeze(1)) * pi[:, None, None]).sum(0) - torch.outer(
        mean, mean
    )
    error = 5 * (covariance.diagonal() / count).sqrt()
    assert ((draws.mean(0) - mean).abs() < error).all()
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.06, atol=0.03)
    for axis in range(2):

        def marginal(x: np.ndarray, axis: int = axis) -> np.ndarray:
            scales = spreads[:, axis, axis].sqrt().numpy()
            return stats.norm.cdf(x[:, None], means[:, axis].numpy(), scales) @ pi.numpy()

        assert stats.kstest(draws[:, axis].numpy(), marginal).pvalue > 1e-3


@pytest.mark.parametrize("components", [1, 4])
def test_expected_log_prob_is_a_lower_bound(components: int) -> None:
    made, mean, log_variance = mixture(components, 3), points(6, 3), points(6, 3, seed=3) / 2 - 1
    normal = torch.randn(20_000, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = mean + (log_variance / 2).exp() * normal
    values = made.log_prob(z.flatten(0, 1)).reshape(20_000, 6).detach()
    estimate, error = values.mean(0), values.std(0) / math.sqrt(20_000)
    bound = made.expected_log_prob(mean, log_variance)
    assert (bound < estimate + 4 * error).all()
    if components == 1:
        assert ((bound - estimate).abs() < 4 * error).all()
    else:
        torch.testing.assert_close(made.expected_log_prob(mean, torch.full_like(mean, -40.0)), made.log_prob(mean))


CENTRES = torch.tensor([[-6.0, 0.0], [6.0, 0.0], [0.0, 9.0]])
FACTORS = torch.tensor([[[1.0, 0.0], [0.8, 0.3]], [[0.5, 0.0], [0.0, 2.0]], [[0.2, 0.0], [-0.1, 0.2]]])


def drawn(counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    normal = torch.randn(len(labels), 2, 1, generator=torch.Generator().manual_seed(0))
    return CENTRES[labels] + (FACTORS[labels] @ normal).squeeze(2), labels


@pytest.mark.parametrize("by_class", [False, True])
def test_a_well_separated_mixture_is_found(by_class: bool) -> None:
    z, labels = drawn((1000, 2000, 3000))
    made = Mixture(3, 2, FLOOR)
    if by_class:
        made.fit_classes(z, labels)
    else:
        made.fit(z, seed=0)
    order = torch.cdist(CENTRES, made.means).argmin(1)
    assert by_class <= (order.tolist() == [0, 1, 2])
    torch.testing.assert_close(made.means[order], CENTRES, atol=0.15, rtol=0)
    torch.testing.assert_close(made.log_pi.exp()[order], torch.tensor([1 / 6, 1 / 3, 1 / 2]), atol=1e-3, rtol=0)
    torch.testing.assert_close(covariances(made)[order], FACTORS @ FACTORS.mT, atol=0.05, rtol=0.1)
    assert made.live == 3


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(50, 3),
        torch.full((50, 3), 1e6),
        1e-9 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0)),
        torch.linspace(-1, 1, 50)[:, None] * torch.tensor([1.0, 2.0, -3.0]),
        torch.eye(3).repeat(2, 1),
    ],
    ids=["equal", "far", "tiny", "line", "few"],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_points_never_give_nan(z: Tensor) -> None:
    made = Mixture(3, 3, FLOOR)
    made.fit(z, seed=0)
    check_floors(made)
    assert made.log_prob(z).isfinite().all()
    assert made.product_mean(z, torch.full_like(z, -20.0), 1.0).isfinite().all()
    classes = torch.arange(len(z)) % 3
    made.fit_classes(z, classes)
    check_floors(made)
    assert made.log_prob(z).isfinite().all()


def check_floors(made: Mixture) -> None:
    assert all(value.isfinite().all() for value in made.state_dict().values())
    assert (made.scales > FLOOR).all()
    assert (made.log_pi.exp() > 0.009 / made.components).all()


def test_points_on_a_line_are_modelled_as_a_line() -> None:
    """A raised diagonal must not bend what a component says of the other directions."""
    along = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    made = Mixture(1, 3, FLOOR)
    made.fit(along * torch.tensor([1.0, 2.0, -3.0]), seed=0)
    covariance = covariances(made)[0]
    spread = torch.tensor([1.0, 2.0, -3.0]) * along.std()
    torch.testing.assert_close(covariance, torch.outer(spread, spread), atol=0.1, rtol=0.05)


def test_floors_hold_wherever_the_weights_go() -> None:
    made = Mixture(3, 2, FLOOR)
    with torch.no_grad():
        made.diagonal.fill_(-1e4)
        made.weights.copy_(torch.tensor([1e4, 0.0, -1e4]))
    torch.testing.assert_close(made.scales, torch.full((3, 2), FLOOR))
    torch.testing.assert_close(made.log_pi.exp()[1:], torch.full((2,), 0.01 / 3))
    assert made.live == 1
    made.log_prob(torch.zeros(1, 2)).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in made.parameters())


def test_too_few_points_are_errors() -> None:
    with pytest.raises(TrainingError, match=r"mixture of 5 components cannot be fitted to 4 latents: .*give more im"):
        Mixture(5, 2, FLOOR).fit(torch.randn(4, 2), seed=0)
    with pytest.raises(TrainingError, match="cannot be fitted to 9 latents: Input X contains NaN"):
        Mixture(2, 2, FLOOR).fit(torch.full((9, 2), math.nan), seed=0)
    with pytest.raises(TrainingError, match="expected at least 2 images of class 1 .*, got 1; give more images"):
        Mixture(2, 2, FLOOR).fit_classes(torch.randn(4, 2), torch.tensor([0, 0, 0, 1]))
    with pytest.raises(TrainingError, match="the latents of class 0 have a singular covariance"):
        Mixture(1, 2, FLOOR).fit_classes(torch.full((4, 2), math.nan), torch.zeros(4, dtype=torch.int64))


def test_inverse_softplus() -> None:
    values = torch.tensor([1e-3, 0.5, 1.0, 30.0, 100.0])
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(values)), values)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("condition", [10.0, 1e6])
def test_solutions_match_torch(size: int, condition: float) -> None:
    matrix = torch.stack([spd(size, condition, seed) for seed in range(3)])
    right = points(3 * size, 2).reshape(3, size, 2)
    solved, log_det = solve_spd(matrix, right)
    torch.testing.assert_close(solved, torch.linalg.solve(matrix, right), rtol=1e-9 * condition, atol=1e-9)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet)
    residual = (matrix @ solved - right).norm() / (matrix.norm() * solved.norm())
    assert residual < 1e-14
    single, log_det = solve_spd(matrix.float(), right.float())
    residual = (matrix.float() @ single - right.float()).norm() / (matrix.norm() * single.norm())
    assert residual < 1e-6
    torch.testing.assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet.float(), atol=0.1, rtol=1e-2)


def test_the_gradient_of_a_solution_is_correct() -> None:
    def solve(root: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return solve_spd(root @ root.mT + torch.eye(3, dtype=root.dtype), right)

    inputs = (points(6, 3).reshape(2, 3, 3).requires_grad_(), points(6, 2).reshape(2, 3, 2).requires_grad_())
    assert torch.autograd.gradcheck(solve, inputs)
