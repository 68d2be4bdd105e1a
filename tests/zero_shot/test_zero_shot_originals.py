"""Zero-shot samplers against their papers' equations, in variance-preserving notation."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from helpers import dense, gaussian
from torch import Tensor
from zero_shot_cases import SHAPE, each_level, make_prior, operators, posed, spectral

from degradation import Draws
from samplers import Euler
from zero_shot import DDNM, DDRM, DDS, DPS, DDNMPlus, DiffPIR, PiGDM


def vp_chain(noise: Tensor, steps: int, denoiser: Callable, step: Callable[..., Tensor]) -> Tensor:
    """x √ᾱ down the grid; `step(x, x̂, ε̂, ᾱ, ᾱ')` with x̂ attached to x, which needs a gradient."""
    grid = Euler(steps).grid()
    x = noise * grid[0] / math.sqrt(1 + grid[0] ** 2)
    for sigma, following in pairwise(grid):
        alpha, after = 1 / (1 + sigma**2), 1 / (1 + following**2)
        x = x.detach().requires_grad_()
        estimate = denoiser(x / math.sqrt(alpha), sigma, None)
        noise_found = (x - math.sqrt(alpha) * estimate) / math.sqrt(1 - alpha)
        x = step(x, estimate, noise_found.detach(), alpha, after)
    return x.detach()


def test_dps_is_the_original(case):
    prior, noise, problem = case
    rng = Draws([0, 1])

    def step(x, estimate, direction, alpha, after):
        beta = 1 - alpha / after
        mean = math.sqrt(after) * beta / (1 - alpha) * estimate.detach()
        mean = mean + math.sqrt(alpha / after) * (1 - after) / (1 - alpha) * x
        moved = mean + math.sqrt(beta * (1 - after) / (1 - alpha)) * rng.randn_like(x)
        norms = problem.residual(estimate).norm(dim=1)
        return moved - 0.3 * torch.autograd.grad(norms.sum(), x)[0]

    expected = vp_chain(noise, 12, prior, step)
    found = DPS(12, zeta=0.3)(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_pigdm_is_the_original(case, eta):
    prior, noise, problem = case
    rng = Draws([0, 1])

    def step(x, estimate, direction, alpha, after):
        c1 = eta * math.sqrt((1 - alpha / after) * (1 - after) / (1 - alpha))
        c2 = math.sqrt(1 - after - c1**2)
        r = math.sqrt(1 - alpha)  # σ²/(1 + σ²) = 1 − ᾱ
        H = problem.degradation
        back = H.H_pinv(problem.residual(estimate.detach()), problem.levels / r)
        g = torch.autograd.grad((back * estimate).sum(), x)[0]
        z = rng.randn_like(x) if c1 else 0
        moved = math.sqrt(after) * estimate.detach() + c1 * z + c2 * direction
        return moved + math.sqrt(alpha * after) * g

    expected = vp_chain(noise, 12, prior, step)
    found = PiGDM(12, eta=eta)(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "sampler",
    [
        DDNM(12),
        DDS(12, cg_steps=40, gamma=0.3),
        DiffPIR(12, zeta=0.3, weight=3.0, noise_floor=0.05),
    ],
)
@each_level
def test_projecting_samplers_are_the_originals(case, sampler, noise_level):
    prior, noise, _ = case
    problem = posed(operators(2)["matrix"], noise_level)
    op, rng = problem.degradation, Draws([0, 1])
    basis = torch.eye(48, dtype=torch.float64).view(1, 48, *SHAPE).expand(2, -1, -1, -1, -1)
    H = op.H(basis).mT

    def solved(damping: float, target: Tensor) -> Tensor:
        """(HᵀH + damping I) x = target, nearest to 0 where damping is."""
        normal = H.mT @ H + damping * torch.eye(48)
        inverse = torch.linalg.pinv(normal, rtol=1e-10, hermitian=True)
        return (inverse @ target.flatten(1)[..., None]).view(-1, *SHAPE)

    def step(x, estimate, direction, alpha, after):
        estimate, z = estimate.detach(), rng.randn_like(x)
        sigma, following = (math.sqrt(1 / a - 1) for a in (alpha, after))
        spread, eta = math.sqrt(1 - after), 0.85
        if isinstance(sampler, DDNM):
            share = min(1.0, following / noise_level) if noise_level else 1.0
            estimate = estimate + share * solved(0, op.H_adjoint(problem.residual(estimate)))
            spread = math.sqrt(after) * math.sqrt(
                max(0.0, following**2 - (share * noise_level) ** 2)
            )
        elif isinstance(sampler, DDS):
            residual = op.H_adjoint(problem.residual(estimate))
            estimate = estimate + solved(1 / 0.3 if noise_level else 0.0, residual)
        else:
            rho = 3.0 * max(noise_level, 0.05) ** 2 / sigma**2
            estimate = solved(rho, op.H_adjoint(problem.y) + rho * estimate)
            direction = (x - math.sqrt(alpha) * estimate) / math.sqrt(1 - alpha)
            eta = math.sqrt(0.3)
        move = math.sqrt(1 - eta**2) * direction + eta * z
        return math.sqrt(after) * estimate + spread * move

    expected = vp_chain(noise, 12, prior, step)
    found = sampler(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_weight_of_diffpir_in_the_authors_units():
    """λ = 1, σₙ = 0.1 and pixels in [0, 1]: the fit to ρ = λσₙ²/σ̄² of the default."""
    problem = posed(operators(1)["matrix"], 0.2)
    op, levels = problem.degradation, []
    plain = op.H_pinv
    op.H_pinv = lambda y, level=0.0: levels.append(level) or plain(y, level)
    DiffPIR(8)(make_prior(), gaussian(1, *SHAPE), problem, Draws([0]))
    for level, sigma in zip(levels, Euler(8).grid()[:-1], strict=True):
        assert level.item() ** 2 == pytest.approx(1 * 0.1**2 / sigma**2)


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.85, 0.6), (0.3, 0.9), (1.0, 0.5)])
def test_ddrm_with_noise_coordinate_by_coordinate(eta, eta_b):
    """Equations 4 and 5 of the paper, one coordinate after the other."""
    problem, s, V, seen = spectral()
    prior, noise, rng = make_prior(), gaussian(2, *SHAPE, seed=7), Draws([0, 1])
    grid = Euler(9).grid()

    def rotated(x: Tensor) -> Tensor:
        return (V.mT @ x.flatten(1)[..., None])[..., 0]

    def measured(b: int, i: int) -> tuple[float, float]:
        """ȳ and its standard deviation."""
        if i >= 6 or not s[b][i]:
            return 0.0, math.nan
        return seen[b, i].item() / s[b][i], problem.levels[b].item() / s[b][i]

    cases, z, first = set(), rotated(noise), grid[0]
    x = first * z
    for b in range(2):
        for i in range(6):
            y, tau = measured(b, i)
            if tau <= first:
                x[b, i] = y + math.sqrt(first**2 - tau**2) * z[b, i]
    for sigma, following in pairwise(grid):
        image = (V @ x[..., None]).view(2, *SHAPE)
        known, z = rotated(prior(image, sigma, None)), rotated(rng.randn_like(image))
        direction, after = (x - known) / sigma, torch.zeros_like(x)
        for b in range(2):
            for i in range(48):
                y, tau = measured(b, i)
                if math.isnan(tau):
                    mean, spread = known[b, i], following * eta
                    mean = mean + math.sqrt(1 - eta**2) * following * direction[b, i]
                elif following < tau:
                    mean, spread = known[b, i], following * eta
                    mean = mean + math.sqrt(1 - eta**2) * following * (y - known[b, i]) / tau
                    cases.add("below")
                else:
                    mean = (1 - eta_b) * known[b, i] + eta_b * y
                    spread = math.sqrt(following**2 - tau**2 * eta_b**2)
                    cases.add("above")
                after[b, i] = mean + spread * z[b, i]
        x = after
    assert cases == {"below", "above"}
    out = DDRM(9, eta=eta, eta_b=eta_b)(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(out, (V @ x[..., None]).view(out.shape), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("eta", [0.85, 0.2])
def test_ddnm_plus_is_the_original(eta):
    """Λ and Φ of its Eqs. 17 and 51 as matrices, in variance-preserving notation."""
    problem, s, V, _ = spectral()
    prior, noise, rng = make_prior(), gaussian(2, *SHAPE, seed=7), Draws([0, 1])
    pinv = torch.linalg.pinv(dense(problem.degradation), rtol=1e-12)

    def step(x, estimate, direction, alpha, after):
        a, sigma = math.sqrt(after), math.sqrt(1 - after)  # of the next time
        estimate, z = estimate.detach().flatten(1), rng.randn_like(x).flatten(1)
        moved = []
        for b in range(2):
            share, spread, along = torch.ones(48), torch.empty(48), torch.zeros(48)
            share, spread, along = share.double(), spread.double(), along.double()
            for i in range(48):
                level = s[b][i] if i < 6 else 0.0
                noisy = a * problem.levels[b].item()
                if not level:
                    spread[i], along[i] = sigma * eta, sigma * math.sqrt(1 - eta**2)
                elif sigma >= noisy / level:
                    spread[i] = math.sqrt(sigma**2 - (noisy / level) ** 2)
                else:
                    share[i] = level * sigma * math.sqrt(1 - eta**2) / noisy
                    spread[i] = sigma * eta
            Q = V[b]
            residual = problem.residual(estimate.view(2, *SHAPE))[b]
            corrected = estimate[b] + Q @ (share * (Q.T @ (pinv[b] @ residual)))
            fresh = Q @ (spread * (Q.T @ z[b]))
            moved.append(a * corrected + fresh + Q @ (along * (Q.T @ direction.flatten(1)[b])))
        return torch.stack(moved).view(x.shape)

    expected = vp_chain(noise, 9, prior, step)
    found = DDNMPlus(9, eta=eta)(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_ddnm_plus_without_noise_is_ddnm():
    """Also beside a problem with noise."""
    op, prior, noise = operators(2)["matrix"], make_prior(), gaussian(2, *SHAPE, seed=7)
    problem = posed(op, torch.tensor([0.0, 0.3], dtype=torch.float64))
    found = DDNMPlus(12, eta=0.6)(prior, noise, problem, Draws([0, 1]))
    expected = DDNM(12, eta=0.6)(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-8, atol=1e-8)
    assert (found[1] - expected[1]).abs().max() > 0.01
