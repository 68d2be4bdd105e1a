"""Gaussian mixtures: density, denoiser and samples against numbers found another way."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import gaussian
from torch import Tensor

from degradation import Draws, Problem
from networks import GaussianMixture

SHAPE = (1, 2, 3)
D = 6
SIGMAS = [1e-3, 0.3, 20.0]


def covariances(count: int, rank: int = D, seed: int = 0) -> Tensor:
    root = gaussian(count, D, rank, seed=seed)
    return root @ root.mT / D


def mixture(covariances: Tensor, components: int = 3, spread: float = 1.0) -> GaussianMixture:
    weights = torch.arange(1, components + 1).double()
    means = spread * gaussian(components, D, seed=1)
    return GaussianMixture.from_covariances(weights / weights.sum(), means, covariances, SHAPE)


CASES = {
    "one": lambda: mixture(covariances(1), 1),
    "three": lambda: mixture(covariances(3)),
    "shared": lambda: mixture(covariances(1)),
    "axes": lambda: GaussianMixture(
        gaussian(1, 3), gaussian(1, 3, D), gaussian(1, 3, D).square(), None, SHAPE
    ),
    "shared axes": lambda: GaussianMixture(
        torch.zeros(1, 3), gaussian(1, 3, D), gaussian(1, 1, D).square(), None, SHAPE
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def prior(request) -> GaussianMixture:
    return CASES[request.param]()


def plain(prior: GaussianMixture, sigma: float) -> list[tuple[float, Tensor, Tensor]]:
    """(weight, mean, covariance) of each component of x0 + σε."""
    weights, noise = prior.log_weights[0].exp().tolist(), sigma**2 * torch.eye(D).double()
    whole = prior.covariances[0].expand(len(weights), D, D) + noise
    return list(zip(weights, prior.means[0], whole, strict=True))


def around(prior: GaussianMixture, sigma: float, count: int = 7) -> Tensor:
    x0 = prior.sample(Draws(range(count)))
    return x0 + sigma * gaussian(*x0.shape, seed=5)


# ---- density


@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
def test_the_density_is_that_of_scipy(prior, sigma):
    x = around(prior, sigma)
    parts = [
        math.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x.flatten(1))
        for w, m, c in plain(prior, sigma)
    ]
    expected = torch.as_tensor(np.stack(parts)).logsumexp(0)
    torch.testing.assert_close(prior.log_density(x, sigma), expected, rtol=1e-8, atol=1e-8)


# ---- the denoiser


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_denoiser_obeys_tweedie(prior, sigma):
    """D(x) = x + σ²·∇ log p(x)."""
    x = around(prior, sigma).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_density(x, sigma).sum(), x)
    expected = x + sigma**2 * score
    torch.testing.assert_close(prior(x, sigma), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_the_denoiser_is_the_mean_of_x0_by_numerical_integration(sigma):
    covariance = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.9]]])
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0]])
    prior = GaussianMixture.from_covariances([0.3, 0.7], means, covariance, (1, 1, 2))
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    density = prior.log_density(grid).exp()
    assert density.sum() * 0.02**2 == pytest.approx(1, abs=1e-9)
    for x in torch.tensor([[0.2, -0.4], [2.0, 1.0], [-1.0, 0.5]]).double():
        likelihood = (-(grid.flatten(1) - x).square().sum(1) / (2 * sigma**2)).exp()
        weights = density * likelihood
        expected = (weights[:, None] * grid.flatten(1)).sum(0) / weights.sum()
        found = prior(x.view(1, 1, 1, 2), sigma).flatten()
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_the_jacobian_of_the_denoiser_is_the_covariance_of_x0(prior):
    """∂D/∂x = Cov[x0 | x]/σ² with Cov[x0 | x] = Σ_k r_k(C_k + D_kD_kᵀ) − DDᵀ."""
    sigma, x = 0.4, around(prior, 0.4, 1)
    logs, means, inner = [], [], []
    for w, m, c in plain(prior, sigma):
        clean = c - sigma**2 * torch.eye(D)
        gain = clean @ c.inverse()
        means.append(m + gain @ (x.flatten() - m))
        inner.append(clean - gain @ clean)
        logs.append(math.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x.flatten()))
    shares = torch.tensor(logs).softmax(0)
    mean = sum(r * m for r, m in zip(shares, means, strict=True))
    between = [c + torch.outer(m - mean, m - mean) for c, m in zip(inner, means, strict=True)]
    covariance = sum(r * c for r, c in zip(shares, between, strict=True))
    jacobian = torch.autograd.functional.jacobian(lambda x: prior(x, sigma), x).view(D, D)
    torch.testing.assert_close(jacobian, covariance / sigma**2)
    torch.testing.assert_close(prior(x, sigma).flatten(), mean)


def test_second_derivatives(prior):
    x = around(prior, 0.4, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: prior(x, 0.4), (x,))


def test_a_tiny_sigma_returns_the_image_and_a_huge_one_the_mean(prior):
    x = around(prior, 0.0)
    torch.testing.assert_close(prior(x, 0.0), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(prior(x, 1e-9), x, rtol=0, atol=1e-9)
    far = 1e8 * gaussian(7, *SHAPE)
    torch.testing.assert_close(prior(0 * far, 1e8), prior.mean().expand(7, *SHAPE))
    assert prior(far, 1e-3).isfinite().all() and prior(far, 1e8).isfinite().all()
    x.requires_grad_()
    (slope,) = torch.autograd.grad(prior(x, 1e-9).sum(), x)
    torch.testing.assert_close(slope, torch.ones_like(x), rtol=0, atol=1e-6)


def test_precision_and_batches(prior):
    x, sigma = around(prior, 0.5), torch.linspace(0.1, 5, 7)
    whole = prior(x, sigma, Problem.without_measurement(7, SHAPE))
    alone = torch.cat([prior(x[[i]], float(sigma[i])) for i in range(7)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)
    assert whole.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16):
        single = prior(x.to(dtype), sigma)
        assert single.dtype == torch.float32
        torch.testing.assert_close(
            single.double(), prior(x.to(dtype).double(), sigma), rtol=1e-6, atol=1e-6
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior(x.float(), sigma), prior(x.float(), sigma.double()).float())


def test_a_batch_of_mixtures_takes_blocks():
    parts = [mixture(covariances(3, seed=s), spread=1 + s) for s in (0, 1)]
    both = GaussianMixture(
        *(torch.cat([getattr(p, name) for p in parts])
          for name in ("log_weights", "means", "variances", "basis")),
        image_shape=SHAPE,
    )  # fmt: skip
    x, sigma = gaussian(6, *SHAPE), torch.linspace(0.1, 5, 6)
    for call in ("__call__", "log_density"):
        found = getattr(both, call)(x, sigma)
        for i in range(6):
            expected = getattr(parts[i % 2], call)(x[[i]], sigma[[i]])
            torch.testing.assert_close(found[[i]], expected)
    draws = both.sample(Draws(range(6)))
    torch.testing.assert_close(draws[3:4], parts[1].sample(Draws([3])))
    torch.testing.assert_close(both[[1]](x, sigma), parts[1](x, sigma))
    with pytest.raises(ValueError, match="5 images are no multiple of 2 mixtures"):
        both(x[:5], 1.0)


# ---- moments and samples


def test_moments(prior):
    mean = sum(w * m for w, m, _ in plain(prior, 0))
    covariance = sum(w * (c + torch.outer(m - mean, m - mean)) for w, m, c in plain(prior, 0))
    torch.testing.assert_close(prior.mean()[0].flatten(), mean)
    torch.testing.assert_close(prior.covariance()[0], covariance)


def test_samples_have_the_moments(prior):
    n = 20_000
    x = prior.sample(Draws(range(n))).flatten(1)
    mean, covariance = prior.mean().flatten(), prior.covariance()[0]
    z = (x.mean(0) - mean) / (covariance.diagonal() / n).sqrt()
    assert z.abs().max() < 4
    assert (torch.cov(x.mT) - covariance).abs().max() < 0.05 * covariance.abs().max()
    fourth = ((x - mean) / covariance.diagonal().sqrt()).pow(4).mean(0)
    assert (fourth - 3).abs().max() > 0.2 or prior.means.shape[1] == 1
    torch.testing.assert_close(prior.sample(Draws([5, 11])).flatten(1), x[[5, 11]])


def test_samples_take_components_by_their_weights():
    prior = mixture(1e-6 * covariances(3), spread=10)
    x = prior.sample(Draws(range(6000))).flatten(1)
    nearest = torch.cdist(x, prior.means[0]).argmin(1).bincount(minlength=3)
    result = scipy.stats.chisquare(nearest, 6000 * torch.tensor([1, 2, 3]) / 6)
    assert result.pvalue > 1e-3


# ---- degenerate covariances


def test_the_density_of_a_singular_gaussian_is_that_on_its_support():
    prior = mixture(covariances(1, rank=4), 1)
    assert (prior.variances == 0).sum() == 2
    x = prior.sample(Draws(range(5)))
    covariance, mean = prior.covariances[0, 0], prior.means[0, 0]
    singular = scipy.stats.multivariate_normal(mean, covariance, allow_singular=True)
    torch.testing.assert_close(prior.log_density(x).numpy(), singular.logpdf(x.flatten(1)))


@pytest.mark.parametrize("count", [1, 3])
def test_the_denoiser_of_a_singular_mixture_lands_on_the_supports(count):
    prior = mixture(covariances(count, rank=4), 3, spread=3)
    x = around(prior, 0.3)
    regular = mixture(covariances(count, rank=4) + 1e-10 * torch.eye(D), 3, spread=3)
    torch.testing.assert_close(prior(x, 0.3), regular(x, 0.3), rtol=1e-6, atol=1e-6)
    for sigma in (1e-12, 1e-6, 1e-3):
        x = around(prior, sigma).requires_grad_()
        clean = prior(x, sigma)
        torch.testing.assert_close(clean, x, rtol=0, atol=10 * sigma + 1e-12)
        assert torch.autograd.grad(clean.sum(), x)[0].isfinite().all()


def test_supports_of_different_dimensions_have_no_common_density():
    mixed = torch.cat((covariances(1), covariances(2, rank=3)))
    prior = mixture(mixed)
    with pytest.raises(ValueError, match="supports have different dimensions"):
        prior.log_density(gaussian(2, *SHAPE))
    assert prior.log_density(gaussian(2, *SHAPE), 0.1).isfinite().all()
    constant = GaussianMixture.gaussian(torch.ones(D), torch.zeros(D, D), SHAPE)
    torch.testing.assert_close(constant(gaussian(2, *SHAPE), 3.0), torch.ones(2, *SHAPE).double())


# ---- what is refused


def test_a_covariance_must_be_one():
    asymmetric = torch.eye(D)
    asymmetric[0, 1] = 0.5
    for wrong in (asymmetric, torch.eye(D) - 1.1 * torch.diag(torch.arange(D) == 0).float()):
        with pytest.raises(ValueError, match="symmetric and positive semi-definite"):
            GaussianMixture.gaussian(torch.zeros(D), wrong, SHAPE)


@pytest.mark.parametrize("weights", [[0.5, -0.5], [0.0, 0.0], [math.nan, 1.0]])
def test_weights_must_be_shares(weights):
    with pytest.raises(ValueError, match="weights of a mixture must be at least 0, and not all"):
        GaussianMixture.from_covariances(weights, torch.zeros(2, D), covariances(1), SHAPE)


def test_shapes_must_fit():
    for means, variances, basis in (
        (torch.zeros(1, 2, D), torch.ones(1, 1, D), None),
        (torch.zeros(1, 3, D), torch.ones(1, 2, D), None),
        (torch.zeros(1, 3, D), torch.ones(1, 3, D), torch.eye(D)[None, None]),
        (torch.zeros(1, 3, D - 1), torch.ones(1, 3, D - 1), None),
    ):
        with pytest.raises(ValueError, match=r"a mixture of weights \[1, 3\] over images"):
            GaussianMixture(torch.zeros(1, 3), means, variances, basis, SHAPE)
