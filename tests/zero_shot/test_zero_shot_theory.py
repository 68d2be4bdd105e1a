"""Zero-shot samplers against laws that are known exactly, and their parts."""

import math

import pytest
import torch
from exact_gaussian import Gaussian, Generator
from helpers import gaussian
from torch import Tensor
from zero_shot_cases import SHAPE, each_level, make_prior, operators, posed, small

from degradation import DenseMatrix, Draws, Problem
from degradation.solve import least_squares
from samplers import Euler
from samplers.base import Run
from zero_shot import DAPS, MGPS, MCGdiff, PiGDM, PnPDM
from zero_shot.base import ancestral, ddpm_grid, explain
from zero_shot.mcgdiff import resampled, systematic
from zero_shot.mgps import SCHEDULES, bridge

# ---- what theory says is exact


@each_level
def test_pigdm_by_the_score_is_the_exact_flow_of_an_isotropic_prior(noise_level):
    """Data N(m, vI): its Gaussian is the true one, so x̂ becomes E[x0 | x, y]."""
    n, v = 48, 0.6
    prior = Gaussian(torch.full((n,), v).double(), 0.3 * gaussian(n), torch.eye(n).double())
    problem = posed(operators(1)["matrix"], noise_level)
    mean, covariance = prior.posterior(problem)
    variances, Q = torch.linalg.eigh(covariance)
    exact = Gaussian(variances.clamp(min=0), mean, Q)
    noise = gaussian(1, *SHAPE)
    found = PiGDM(20, eta=0, form="score", data_std=math.sqrt(v))(prior, noise, problem, Draws([0]))
    expected = Euler(20)(exact, noise, problem, Draws([0]))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_explaining_has_the_moments_of_the_product_of_gaussians():
    """The sample is affine in its draws, so its moments follow without sampling."""
    problem = posed(operators(1)["matrix"], 0.2)
    mean, spread = gaussian(1, *SHAPE, seed=11), 0.7
    Q = torch.eye(48, dtype=torch.float64)
    exact = Gaussian(torch.full((48,), spread**2).double(), mean.flatten(), Q).posterior(problem)

    class Unit:
        """All draws zero but one."""

        def __init__(self, draw: int, place: int):
            self.draw, self.place = draw, place

        def randn_like(self, x: Tensor) -> Tensor:
            self.draw -= 1
            unit = torch.zeros_like(x)
            if self.draw == 0:
                unit.flatten()[self.place] = 1
            return unit

    def sampled(draw: int, place: int) -> Tensor:
        level = problem.levels.double()
        return explain(problem, mean, spread, level, Unit(draw, place)).flatten()

    centre = sampled(0, 0)
    columns = [sampled(1, i) - centre for i in range(48)] + [
        sampled(2, i) - centre for i in range(9)
    ]
    A = torch.stack(columns, 1)
    torch.testing.assert_close(centre, exact[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(A @ A.T, exact[1], rtol=0, atol=1e-7)


def deviations(out: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Largest errors of mean and variance along the axes of an expected law, in its units."""
    variances, Q = torch.linalg.eigh(covariance)
    along = variances > 1e-9
    z = ((out.flatten(1).double() - mean) @ Q)[:, along] / variances[along].sqrt()
    return z.mean(0).abs().max(), (z.var(0) - 1).abs().max()


def wasserstein(mean: Tensor, covariance: Tensor, other: Tensor, spread: Tensor) -> Tensor:
    """W₂ of two Gaussians."""
    values, Q = torch.linalg.eigh(covariance)
    root = (Q * values.clamp(min=0).sqrt()) @ Q.T
    cross = torch.linalg.eigvalsh(root @ spread @ root).clamp(min=0).sqrt().sum()
    squared = (mean - other).square().sum() + covariance.trace() + spread.trace() - 2 * cross
    return squared.clamp(min=0).sqrt()


N = 2000  # the error of a mean is 0.022, of a variance 0.032


def test_pnpdm_has_its_stationary_law():
    prior, problem = small()
    H = problem.degradation.H(torch.eye(12).double().view(1, 12, 3, 2, 2))[0].T
    rho = 0.8
    coupled = 0.2**2 * torch.eye(3) + rho**2 * H @ H.T
    law = prior.posterior(problem, coupled)
    sampler = PnPDM(400, iterations=8, rho_start=rho, rho_last=rho)
    out = sampler(prior, gaussian(N, 3, 2, 2), problem.expand(N), Generator())
    mean, variance = deviations(out, *law)
    assert mean < 0.08 and variance < 0.12
    assert max(deviations(out, *prior.posterior(problem))) > 0.5  # not yet the posterior: ρ > 0


@each_level
def test_mcgdiff_has_the_posterior_as_its_limit(noise_level):
    prior, problem = small()
    problem = Problem(problem.degradation, problem.y, noise_level)
    law = prior.posterior(problem)
    sampler = MCGdiff(80, sigma_min=0.01, sigma_max=20.0, particles=16)
    out = sampler(prior, gaussian(N // 3, 3, 2, 2), problem.expand(N // 3), Generator())
    mean, variance = deviations(out, *law)
    assert mean < 0.12 and variance < 0.18
    if not noise_level:
        assert problem.expand(N // 3).residual(out).abs().max() < 1e-6


def test_more_particles_come_nearer():
    prior, problem = small()
    law, errors = prior.posterior(problem), []
    for particles in (1, 4, 32):
        sampler = MCGdiff(30, particles=particles)
        out = sampler(prior, gaussian(1000, 3, 2, 2), problem.expand(1000), Generator())
        errors.append(sum(deviations(out, *law)))
    assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2]


def test_mgps_is_near_the_posterior():
    """It is no exact sampler: the fits are short, and p(y | x) stands for p(y | D(x))."""
    prior, problem = small()
    mean, covariance = prior.posterior(problem)
    noise = gaussian(500, 3, 2, 2)
    sampler = MGPS(100, schedule="mixture", lr=0.1)
    out = sampler(prior, noise, problem.expand(500), Generator())
    distance = wasserstein(out.flatten(1).mean(0), out.flatten(1).T.cov(), mean, covariance)
    assert distance < 0.25 * wasserstein(prior.mean, prior.covariance, mean, covariance)


class Silent:
    """No noise at all."""

    def randn_like(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_langevin_dynamics_settle_where_the_exact_step_does():
    prior, problem = small()
    sampler = DAPS(langevin_steps=4000, lr=2e-3)
    mean, tau = gaussian(1, 3, 2, 2, seed=5), torch.full((1,), 0.2).double()
    exact = explain(problem, mean, 0.5, tau, Silent())
    run = Run(small()[0], problem, problem, Silent())
    found = sampler._langevin(run, mean, 0.5, tau)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    assert (found - mean).abs().max() > 0.1


def test_langevin_dynamics_do_not_diverge():
    """‖H‖ = 300: the published step is a million times too large."""
    prior, problem = small()
    op = DenseMatrix(200 * gaussian(1, 3, 12, seed=2), (3, 2, 2))
    large = Problem(op, op.H(gaussian(1, 3, 2, 2)), 0.0)
    for inner in ("langevin", "exact"):
        out = DAPS(20, langevin_steps=20, inner=inner)(
            prior, gaussian(1, 3, 2, 2), large, Draws([0])
        )
        assert out.isfinite().all() and out.abs().max() < 20


# ---- parts


def test_the_levels_of_ddpm():
    grid = ddpm_grid(1000)
    assert len(grid) == 1000 and grid == sorted(grid)
    assert grid[0] == pytest.approx(0.01, rel=1e-3) and grid[-1] == pytest.approx(157.4, rel=1e-3)
    assert ddpm_grid(4) == [grid[0], grid[333], grid[666], grid[999]]


@pytest.mark.parametrize(("high", "low"), [(80.0, 3.0), (0.2, 0.1), (0.002, 0.0)])
def test_the_ancestral_move_is_the_conditional_gaussian(high, low):
    """Of x' = x0 + σ'ε' and x = x' + √(σ² − σ'²)ε: regression of x' − x0 on x − x0."""
    along, spread = ancestral(high, low)
    assert along / high == pytest.approx(low**2 / high**2)
    assert spread**2 == pytest.approx(low**2 - low**4 / high**2)
    assert along**2 + spread**2 == pytest.approx(low**2)


def test_the_bridge_is_the_conditional_gaussian():
    low, mid, high = 0.5, 1.2, 3.0
    increments = torch.tensor([[mid**2 - low**2], [high**2 - low**2]])
    mean, spread = bridge(torch.tensor(0.0), low, torch.tensor(1.0), high, mid)
    gain = increments[0] / increments[1]  # Brownian in the clock σ²
    assert mean.item() == pytest.approx(gain.item())
    assert spread**2 == pytest.approx((increments[0] - gain * increments[0]).item())


def test_a_few_conjugate_gradients_solve_every_image_by_itself():
    op = operators(3)["matrix"]
    y, sigma = op.H(gaussian(3, *SHAPE)), torch.tensor([1.0, 0.1, 3.0]).double().view(3, 1, 1)
    y[2] = 0  # done before it begins

    def solved(index: list[int], steps: int) -> Tensor:
        part = op[index]
        return least_squares(
            lambda v: part.H(part.unflatten(v)),
            lambda y: part.H_adjoint(y).flatten(-3),
            y[index, None],
            sigma[index],
            steps,
        )[:, 0].view(len(index), *SHAPE)

    x = solved([0, 1, 2], 60)
    torch.testing.assert_close(x, op.H_pinv(y, sigma.flatten()))
    torch.testing.assert_close(solved([1], 3), solved([0, 1, 2], 3)[1:2])


def test_systematic_resampling_is_unbiased():
    shares = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).double()
    u = ((torch.arange(1000) + 0.5) / 1000).double()[:, None]
    index = systematic(shares.expand(1000, -1), u, 4)
    counts = torch.stack([(index == i).sum() for i in range(4)]) / 4000
    torch.testing.assert_close(counts.double(), shares[0], rtol=0, atol=1e-3)


def test_particles_go_on_where_their_weights_are_even():
    u = torch.tensor([[0.5], [0.5]]).double()
    weights = torch.tensor([[0.0, 0.1, -0.1, 0.0], [0.0, 9.0, -9.0, 0.0]]).double()
    index, after = resampled(weights, u)
    assert index.tolist() == [[0, 1, 2, 3], [1, 1, 1, 1]]
    assert torch.equal(after[0], weights[0]) and not after[1].any()


@pytest.mark.parametrize("midpoint", [0.01, 0.5, 0.99])
def test_mgps_goes_down_to_the_second_time(midpoint):
    """And not below, whatever its midpoint."""
    prior, asked = make_prior(), set()

    def denoiser(x, sigma, given):
        asked.add(sigma)
        return prior(x, sigma, given)

    MGPS(8, midpoint=midpoint)(
        denoiser, gaussian(1, *SHAPE), posed(operators(1)["mask"], 0.1), Draws([0])
    )
    assert min(asked) == ddpm_grid(8)[1]


def test_the_published_numbers_of_gradient_steps():
    for name, total in (("ffhq", 1170), ("imagenet", 796), ("mixture", 1242)):
        assert sum(SCHEDULES[name](i, 300) for i in range(3, 300)) == total, name
