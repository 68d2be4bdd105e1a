"""DAPS, MCGdiff, RED-Diff and MGPS against their algorithms, written once more."""

import math
from itertools import pairwise

import pytest
import torch
from exact_gaussian import Gaussian, Generator
from helpers import dense, gaussian
from torch import Tensor
from zero_shot_cases import SHAPE, make_prior, operators, posed, small, spectral

from degradation import DenseMatrix, Draws, GaussianNoise, Problem, get_family
from samplers import Euler
from zero_shot import DAPS, MGPS, MCGdiff, REDDiff
from zero_shot.base import ancestral, ddpm_grid
from zero_shot.mcgdiff import systematic
from zero_shot.mgps import SCHEDULES


@pytest.mark.parametrize("released", [False, True])
def test_daps_is_its_algorithm(released):
    """Once more, with the density differentiated automatically."""
    prior, noise, rng = make_prior(), gaussian(2, *SHAPE, seed=7), Draws([0, 1])
    op = operators(2)["matrix"]
    problem = posed(op, torch.tensor([0.2, 0.001], dtype=torch.float64))
    tau = [0.2, 0.01]
    norms = torch.linalg.matrix_norm(dense(op), 2).tolist()
    options = {"lr": 1.7e-4, "lr_last": 0.2, "langevin_steps": 7}
    levels, shortened = Euler(5, 0.1, 100.0).grid(), set()
    x = levels[0] * noise
    for step, (sigma, following) in enumerate(pairwise(levels)):
        mean = x
        for high, low in pairwise(Euler(4, 0.02, sigma).grid()):
            mean = mean + (low - high) * (mean - prior(mean, high, None)) / high
        if released and not following:
            x = mean
            break
        share, x = 1.7e-4 * (1 - 0.8 * step / 5), mean
        for _ in range(7):
            x, z = x.detach().requires_grad_(), rng.randn_like(mean)
            moved = []
            residual = problem.residual(x)
            for b in range(2):
                log_density = -residual[b].square().sum() / (2 * tau[b] ** 2)
                log_density = log_density - (x[b] - mean[b]).square().sum() / (2 * sigma**2)
                slope = torch.autograd.grad(log_density, x, retain_graph=True)[0][b]
                curvature = (norms[b] / tau[b]) ** 2 + 1 / sigma**2
                lr = min(share * 1e4, 1.5) / curvature
                shortened.add(share * 1e4 > 1.5)
                moved.append(x[b] + lr * slope + math.sqrt(2 * lr) * z[b])
            x = torch.stack(moved).detach()
        if following:
            x = x + following * rng.randn_like(x)
    assert shortened == {False, True}
    sampler = DAPS(5, ode_steps=4, ode_sigma_min=0.02, released=released, **options)
    out = sampler(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(out, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["HalfImage", "Bicubic"])
def test_daps_agrees_with_noisy_data_as_it_should(name):
    """mean (y − Hx)² is σₙ² within a factor of 1.3, with 60 of the 200 steps."""
    family, shape, batch = get_family(name), (3, 8, 8), 12
    prior = make_prior(192)
    op = family.sample(shape, 4 if name == "Bicubic" else None, range(batch))
    x = prior.mean + (gaussian(batch, 192) * prior.variances.sqrt()) @ prior.Q.T
    problem = GaussianNoise(0.05).measure(op, x.view(batch, *shape), Draws(range(batch)))
    out = DAPS(60)(prior, gaussian(batch, *shape, seed=1), problem, Generator())
    residual = problem.residual(out).square().sum(1) / op.rows.sum(1)
    assert 1 / 1.3 < residual.mean() / 0.05**2 < 1.3


@pytest.mark.parametrize(("gain", "level"), [(0.0, 0.05), (0.1, 0.3)])
def test_daps_is_no_wider_than_its_exact_form_where_little_is_measured(gain, level):
    torch.manual_seed(0)
    prior = Gaussian(
        torch.full((12,), 0.25).double(), torch.zeros(12).double(), torch.eye(12).double()
    )
    op = DenseMatrix(gain * torch.eye(12).double()[None], (3, 2, 2))
    problem = Problem(op, torch.zeros(1, 12).double(), level).expand(100)
    variances = []
    for inner in ("langevin", "exact"):
        sampler = DAPS(25, inner=inner, langevin_steps=50)
        out = sampler(prior, gaussian(100, 3, 2, 2), problem, Generator())
        variances.append(out.var().item())
    assert variances[0] < 1.3 * variances[1]


def test_daps_keeps_the_authors_tau():
    prior, problem = small()
    noise, same = gaussian(1, 3, 2, 2), Problem(problem.degradation, problem.y, 0.01)
    found, expected = (
        sampler(prior, noise, p, Generator())
        for sampler, p in ((DAPS(4, tau=0.01), problem), (DAPS(4), same))
    )
    torch.testing.assert_close(found, expected)


def test_daps_ends_on_the_measurement():
    """Its last step draws it there; InvFusion's released code leaves that out."""
    prior, problem = small()
    problem = Problem(problem.degradation, problem.y, 0.0).expand(200)
    errors = []
    for released in (False, True):
        sampler = DAPS(30, inner="exact", released=released)
        out = sampler(prior, gaussian(200, 3, 2, 2), problem, Generator())
        errors.append(problem.residual(out).square().mean().sqrt().item())
    assert errors[0] == pytest.approx(0.01, rel=0.15) and errors[1] > 0.1


def test_mcgdiff_is_its_algorithm():
    """In coordinates Vᵀx, with whole log-densities, one image after the other."""
    problem, s, V, seen = spectral()
    prior, noise, rng = make_prior(), gaussian(2, *SHAPE, seed=7), Draws([0, 1])
    grid, kinds, k = Euler(12).grid(), set(), 4
    y, tau = torch.zeros(2, 1, 48).double(), torch.full((2, 1, 48), math.inf).double()
    for b in range(2):
        for i in (i for i in range(6) if s[b][i]):
            y[b, 0, i], tau[b, 0, i] = seen[b, i] / s[b][i], problem.levels[b] / s[b][i]

    def image(z: Tensor) -> Tensor:
        return (V[:, None] @ z[..., None]).view(*z.shape[:2], *SHAPE)

    def rotated(x: Tensor) -> Tensor:
        return (V.mT[:, None] @ x.flatten(2)[..., None])[..., 0]

    def denoised(z: Tensor, sigma: float) -> Tensor:
        return rotated(prior(image(z).flatten(0, 1), sigma, None).view(*z.shape[:2], *SHAPE))

    def log_likelihood(z: Tensor, variance: Tensor) -> Tensor:
        known = variance.isfinite()
        law = torch.distributions.Normal(z, torch.where(known, variance, 1).sqrt())
        return torch.where(known, law.log_prob(y), 0).sum(-1)

    def drawn(mean: Tensor, spread: float, sigma: float, z: Tensor) -> Tensor:
        """From N(mean, spread²) times N(ȳ; ·, σ² + τ²)."""
        gain = spread**2 / (spread**2 + sigma**2 + tau**2)
        return mean + gain * (y - mean) + spread * (1 - gain).sqrt() * z

    def uniform() -> Tensor:
        return torch.special.ndtr(rng.randn_like(noise.new_zeros(2, 1)))

    first = torch.cat(
        (noise[:, None], rng.randn_like(noise[:, None].expand(-1, k - 1, -1, -1, -1))), 1
    )
    x = drawn(torch.zeros(2, k, 48).double(), grid[0], grid[0], rotated(first))
    weights = torch.zeros(2, k).double()
    for sigma, following in pairwise(grid[:-1]):
        estimate, (along, spread) = denoised(x, sigma), ancestral(sigma, following)
        mean = estimate + along * (x - estimate) / sigma
        weights += log_likelihood(mean, spread**2 + following**2 + tau**2)
        weights -= log_likelihood(x, sigma**2 + tau**2)
        u = uniform()
        for b in range(2):
            shares = weights[b].softmax(0)
            again = bool(1 / shares.square().sum() < k / 2)
            kinds.add(again)
            if again:
                mean[b], weights[b] = mean[b, systematic(shares[None], u[b : b + 1], k)[0]], 0
        x = drawn(mean, spread, following, rotated(rng.randn_like(image(x))))
    index = systematic(weights.softmax(1), uniform(), 1)[:, 0]
    last = grid[-2]
    estimate = denoised(x[torch.arange(2), index][:, None], last)
    expected = estimate + last**2 / (last**2 + tau**2) * (y - estimate)
    assert kinds == {True, False}
    out = MCGdiff(12, particles=k)(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(out, image(expected)[:, 0], rtol=1e-7, atol=1e-7)


def test_reddiff_descends_its_loss(case):
    prior, noise, problem = case
    rng, mu = Draws([0, 1]), problem.pinv().clone().requires_grad_()
    adam = torch.optim.Adam([mu], lr=0.2, betas=(0.9, 0.99))
    for sigma in reversed(ddpm_grid(15)):
        z = rng.randn_like(mu)
        x = (mu + sigma * z).detach()
        found = (x - prior(x, sigma, None)) / sigma
        data = problem.residual(mu).square().mean(1) / 2
        regulariser = 0.3 * sigma * (mu * (found - z)).flatten(1).mean(1)
        adam.zero_grad()
        (data + regulariser).sum().backward()
        adam.step()
    out = REDDiff(15, lr=0.2, weight=0.3)(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(out, mu.detach(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("noise_floor", [0.05, 0.3])
def test_mgps_descends_its_objective(case, noise_floor):
    """The algorithm once more in the original's notation, with automatic derivatives."""
    prior, noise, problem = case
    n, rng = 9, Draws([0, 1])
    sigmas = ddpm_grid(n)
    alpha = [1 / (1 + s**2) for s in sigmas]

    def denoised(u: Tensor, i: int) -> Tensor:
        return prior(u / math.sqrt(alpha[i]), sigmas[i], None)

    def between(low: Tensor, l: float, high: Tensor, h: float, m: float) -> tuple[Tensor, float]:
        """q(x_m | x_l, x_h) of the forward chain with ᾱ l > m > h."""
        up, down = m / l, h / m
        variance = (1 - up) * (1 - down) / (1 - h / l)
        mean = math.sqrt(up) * (1 - down) * low + math.sqrt(down) * (1 - up) * high
        return mean / (1 - h / l), variance

    x, x0 = noise * math.sqrt(1 - alpha[-1]), None
    for t in range(n - 1, 2, -1):
        low = (t - 1) // 2
        estimate = denoised(x, t)
        x0 = estimate if x0 is None else x0
        mean, variance = between(estimate, 1.0, x, alpha[t], alpha[low])
        m = between(x0, 1.0, x, alpha[t], alpha[low])[0].clone().requires_grad_()
        rho = torch.full_like(m, math.log(variance) / 2, requires_grad=True)
        adam = torch.optim.Adam([m, rho], lr=0.05)
        for _ in range(SCHEDULES["mixture"](t, n)):
            u = m + rho.exp() * rng.randn_like(m)
            data = problem.residual(denoised(u, low)).square().sum() / (
                2 * max(0.1, noise_floor) ** 2
            )
            kl = ((2 * rho).exp() + (m - mean).square()) / (2 * variance) - rho
            adam.zero_grad()
            (data + kl.sum()).backward()
            adam.step()
        with torch.no_grad():
            u = m + rho.exp() * rng.randn_like(m)
            x0 = denoised(u, low)
            mean, variance = between(u, alpha[low], x, alpha[t], alpha[t - 1])
            x = mean + math.sqrt(variance) * rng.randn_like(x)
    sampler = MGPS(n, schedule="mixture", lr=0.05, noise_floor=noise_floor)
    out = sampler(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(out, x0, rtol=1e-6, atol=1e-6)
