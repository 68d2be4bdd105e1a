"""Exact posteriors of mixtures against brute-force dense formulas, for every kind of operator."""

import math
from typing import Any

import pytest
import scipy.stats
import torch
from helpers import dense, gaussian
from torch import Tensor

from degradation import (
    BlockHadamard,
    ChannelProduct,
    DenseMatrix,
    Draws,
    LinearOperator,
    Mask,
    NullOperator,
    Problem,
    StridedConvolution,
)
from networks import GaussianMixture, posterior, posterior_mean
from samplers import Heun

SHAPE = (3, 4, 4)
D = 48


def prior_of(kind: str, rank: int = D) -> GaussianMixture:
    """One component, three, or three of one covariance, about as far apart as they are wide."""
    components, count = {"one": (1, 1), "three": (3, 3), "shared": (3, 1)}[kind]
    root = gaussian(count, D, rank, seed=1) / math.sqrt(D)
    weights, means = (
        torch.tensor([0.5, 0.2, 0.3])[:components],
        0.3 * gaussian(components, D, seed=2),
    )
    return GaussianMixture.from_covariances(weights, means, root @ root.mT, SHAPE)


def mask() -> Mask:
    return Mask((gaussian(2, 1, 4, 4, seed=3) < 0.3).double(), SHAPE)


def matrix() -> DenseMatrix:
    values = gaussian(2, 9, D, seed=3)
    values[1, 7:] = 0  # rows that do not exist
    values[1, 6] = values[1, 5] - values[1, 4]  # and one that says nothing new
    return DenseMatrix(values, SHAPE)


def hadamard() -> BlockHadamard:
    index = torch.stack([torch.randperm(D)[:10] for _ in range(2)])
    return BlockHadamard(gaussian(2, D, seed=4).sign(), index, SHAPE).to(torch.float64)


OPERATORS: dict[str, Any] = {
    "mask": mask,
    "blur": lambda: StridedConvolution(gaussian(2, 3, 2, seed=3).abs(), 2, SHAPE),
    "matrix": matrix,
    "null": lambda: NullOperator(2, SHAPE).to(torch.float64),
    "hadamard": hadamard,
    "grey": lambda: ChannelProduct(
        gaussian(1, 1, 3).expand(2, -1, -1), Mask(torch.ones(2, 1, 4, 4).double(), (1, 4, 4))
    ),
}
kinds = pytest.mark.parametrize("kind", ["one", "three", "shared"])
operators = pytest.mark.parametrize("name", OPERATORS)


def measured(prior: GaussianMixture, operator: LinearOperator, noise_level: float) -> Problem:
    x = prior.sample(Draws(range(len(operator))))
    y = operator.H(x)
    y = y + noise_level * gaussian(*y.shape, seed=7) * operator.rows
    return Problem(operator, operator.H(operator.H_pinv(y)), noise_level)


def plain(prior: GaussianMixture, problem: Problem) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Log-weights, means and covariances for each problem, row by row of a dense H:
    m + ΣHᵀ(HΣHᵀ + σ²I)⁺(y − Hm), without noise in orthonormal coordinates of the rows of H."""
    found = []
    for i, H in enumerate(dense(problem.degradation)):
        noise = float(problem.levels[i]) ** 2
        U, s, Vt = torch.linalg.svd(H, full_matrices=False)
        r = int((s > 1e-8 * s.amax().clamp(min=1e-300)).sum())
        A, y = s[:r, None] * Vt[:r], U[:, :r].mT @ problem.y[i]
        logs, means, covariances = [], [], []
        for k, mean in enumerate(prior.means[0]):
            covariance = prior.covariances[0].expand(len(prior.means[0]), D, D)[k]
            S = A @ covariance @ A.mT + noise * torch.eye(r)
            K = torch.linalg.solve(S, A @ covariance).mT
            means.append(mean + K @ (y - A @ mean))
            covariances.append(covariance - K @ A @ covariance)
            density = scipy.stats.multivariate_normal(A @ mean, S).logpdf(y) if r else 0.0
            logs.append(float(prior.log_weights[0, k]) + density)
        found.append(
            (
                torch.tensor(logs, dtype=torch.float64).log_softmax(0),
                torch.stack(means),
                torch.stack(covariances),
            )
        )
    return found


@kinds
@operators
@pytest.mark.parametrize("noise_level", [0.0, 0.05, 1.0])
def test_the_posterior_is_the_textbook_formula(kind, name, noise_level):
    prior, operator = prior_of(kind), OPERATORS[name]()
    problem = measured(prior, operator, noise_level)
    found, mean = posterior(prior, problem), posterior_mean(prior, problem)
    for i, (logs, means, covariances) in enumerate(plain(prior, problem)):
        torch.testing.assert_close(found.log_weights[i], logs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.means[i], means, rtol=0, atol=1e-8)
        own = found.covariances[i].expand_as(covariances)
        torch.testing.assert_close(own, covariances, rtol=0, atol=1e-9)
        expected = (logs.exp()[:, None] * means).sum(0).view(SHAPE)
        torch.testing.assert_close(found.mean()[i], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(mean, found.mean(), rtol=0, atol=1e-6)


@kinds
@operators
def test_without_noise_every_sample_is_measured_as_y(kind, name):
    prior, operator = prior_of(kind), OPERATORS[name]()
    problem = measured(prior, operator, 0.0)
    found = posterior(prior, problem)
    x = found.sample(Draws(range(10)))
    torch.testing.assert_close(operator.expand(5).H(x), problem.y.repeat(5, 1), rtol=0, atol=1e-9)
    measured_directions = (operator.s > 0).sum(-1)
    assert torch.equal(
        (found.variances == 0).sum(-1),
        measured_directions[:, None].expand_as(found.variances[..., 0]),
    )


@kinds
def test_without_noise_is_the_limit_of_little_noise(kind):
    prior, operator = prior_of(kind), matrix()
    clean = measured(prior, operator, 0.0)
    exact = posterior(prior, clean)
    errors = []
    for level in (1e-3, 1e-4, 1e-5):
        near = posterior(prior, Problem(operator, clean.y, level))
        errors.append((near.covariance() - exact.covariance()).abs().max())
        torch.testing.assert_close(near.mean(), exact.mean(), rtol=0, atol=300 * level)
    assert errors[0] > 30 * errors[1] > 900 * errors[2]


@kinds
def test_densities_obey_bayes(kind):
    """log p(x | y) − log p(x) − log p(y | x) is the same for all x."""
    prior, problem = prior_of(kind), measured(prior_of(kind), matrix(), 0.3)
    found, operator = posterior(prior, problem), problem.degradation
    x = prior.sample(Draws(range(12)))
    misfit = (
        (problem.y.repeat(6, 1) - operator.expand(6).H(x)) * operator.rows.repeat(6, 1)
    ).square()
    constant = found.log_density(x) - prior.log_density(x) + misfit.sum(-1) / (2 * 0.3**2)
    torch.testing.assert_close(constant, constant[:2].repeat(6), rtol=1e-6, atol=1e-6)


@kinds
@pytest.mark.parametrize("levels", [(0.2, 0.2), (0.0, 0.2), (0.2, 0.0), (0.0, 0.0)])
def test_measuring_twice_is_measuring_both(kind, levels):
    prior, rows = prior_of(kind), gaussian(2, 8, D, seed=3)
    x = prior.sample(Draws([0, 1]))
    first, second = (DenseMatrix(part, SHAPE) for part in (rows[:, :5], rows[:, 5:]))
    ys = [op.H(x) for op in (first, second)]
    twice = posterior(
        posterior(prior, Problem(first, ys[0], levels[0])), Problem(second, ys[1], levels[1])
    )
    both = DenseMatrix(rows, SHAPE)
    if levels[0] == levels[1]:
        once = posterior(prior, Problem(both, torch.cat(ys, 1), levels[0]))
    else:
        swapped = posterior(prior, Problem(second, ys[1], levels[1]))
        once = posterior(swapped, Problem(first, ys[0], levels[0]))
    torch.testing.assert_close(twice.log_weights, once.log_weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(twice.mean(), once.mean(), rtol=0, atol=1e-9)
    torch.testing.assert_close(twice.covariance(), once.covariance(), rtol=0, atol=1e-9)


@kinds
def test_problems_of_one_batch_may_differ_in_noise(kind):
    prior, operator = prior_of(kind), mask()
    problem = Problem(operator, measured(prior, operator, 0.1).y, torch.tensor([0.0, 0.1]))
    both = posterior(prior, problem)
    for i in (0, 1):
        alone = posterior(prior, problem[[i]])
        torch.testing.assert_close(both[[i]].covariance(), alone.covariance())
        torch.testing.assert_close(both[[i]].mean(), alone.mean())


# ---- degenerate covariances


@kinds
@pytest.mark.parametrize("noise_level", [0.0, 0.1])
def test_a_singular_prior_is_the_limit_of_a_regular_one(kind, noise_level):
    """Rank 5 of 48, so that 9 rows say more than there is to know."""
    prior = prior_of(kind, rank=5)
    problem = measured(prior, matrix(), noise_level)
    found = posterior(prior, problem)
    ridge = 1e-7 * torch.eye(D)
    regular = GaussianMixture.from_covariances(
        prior.log_weights[0].exp(), prior.means[0], prior.covariances[0] + ridge, SHAPE
    )
    near = posterior(regular, problem)
    torch.testing.assert_close(found.mean(), near.mean(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.covariance(), near.covariance(), rtol=0, atol=1e-4)
    torch.testing.assert_close(posterior_mean(prior, problem), found.mean(), rtol=0, atol=1e-6)
    if not noise_level:  # x is known
        assert (found.covariance()[0].diagonal() < 1e-9).all()
        assert found.log_weights.exp().amax(-1).min() > 1 - 1e-6


# ---- the conditional denoiser


@kinds
@operators
@pytest.mark.parametrize("noise_level", [0.0, 0.2])
@pytest.mark.parametrize("sigma", [0.02, 30.0])
def test_the_conditional_denoiser_is_the_mean_given_both(kind, name, noise_level, sigma):
    """x = x0 + σε is one more measurement of x0, by the identity with noise σ."""
    prior, operator = prior_of(kind), OPERATORS[name]()
    problem = measured(prior, operator, noise_level)
    x = prior.sample(Draws(range(2))) + sigma * gaussian(2, *SHAPE, seed=9)
    found = posterior(prior, problem)(x, sigma)
    identity = Mask(torch.ones(2, 1, 4, 4).double(), SHAPE)
    seen = posterior(prior, Problem(identity, x.flatten(1), sigma))
    expected = posterior(seen, problem).mean()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_float32_problems():
    prior = prior_of("three")
    problem = measured(prior, mask(), 0.1)
    single = Problem(problem.degradation.to(torch.float32), problem.y.float(), 0.1)
    x = gaussian(2, *SHAPE, dtype=torch.float32)
    found = posterior(prior, single)(x, 0.5)
    assert found.dtype == posterior_mean(prior, single).dtype == torch.float32
    expected = posterior(prior, problem)(x.double(), 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "noise_level"), [("one", 0.0), ("three", 0.2)])
def test_heun_with_the_conditional_denoiser_reaches_the_posterior(kind, noise_level):
    """Mean and covariance of 3000 samples of one problem, and their Mahalanobis distances."""
    n, prior = 3000, prior_of(kind)
    problem = measured(prior, matrix(), noise_level)[[0]]
    exact = posterior(prior, problem)
    noise = Draws(range(n)).normal(SHAPE, "latent").double()
    x = Heun(num_steps=80)(exact, noise, problem.expand(n), Draws(range(n))).flatten(1)
    mean, covariance = exact.mean().flatten(), exact.covariance()[0]
    error = (x.mean(0) - mean).square().sum()
    assert error < 2.0 * covariance.trace() / n
    floor = torch.cov(exact.sample(Draws(range(n, 2 * n))).flatten(1).mT) - covariance
    assert (torch.cov(x.mT) - covariance).norm() < 1.5 * floor.norm()
    if kind == "one":
        basis, variances = exact.basis[0, 0], exact.variances[0, 0]
        z = ((x - mean) @ basis)[:, variances > 1e-4] / variances[variances > 1e-4].sqrt()
        result = scipy.stats.kstest(z.square().sum(1), scipy.stats.chi2(z.shape[1]).cdf)
        assert result.pvalue > 1e-3
    else:  # in the right proportions
        shares = exact.component_log_densities(x.view(-1, *SHAPE)).softmax(1).mean(0)
        torch.testing.assert_close(shares, exact.log_weights[0].exp(), rtol=0, atol=0.04)


def test_priors_must_fit_the_problems():
    prior = prior_of("one")
    three = GaussianMixture(
        *(getattr(prior, n).expand(3, *getattr(prior, n).shape[1:])
          for n in ("log_weights", "means", "variances", "basis")),
        image_shape=SHAPE,
    )  # fmt: skip
    with pytest.raises(ValueError, match="3 priors cannot be those of 2 problems"):
        posterior(three, measured(prior, mask(), 0.0))
