"""Zero-shot samplers against what is known: recorded runs, the originals' notation, exact laws."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact_gaussian import Gaussian, Generator, Replay
from helpers import dense, gaussian
from torch import Tensor
from zero_shot_cases import make_prior, operators, posed

from degradation import DenseMatrix, Draws, LinearOperator, Mask, NullOperator, Problem
from degradation.solve import least_squares
from samplers import Euler, karras_grid
from samplers.base import Run
from zero_shot import (
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DPS,
    MGPS,
    DDNMPlus,
    DiffPIR,
    MCGdiff,
    PiGDM,
    PnPDM,
    REDDiff,
)
from zero_shot.base import ancestral, ddpm_grid, explain
from zero_shot.mcgdiff import resampled, systematic
from zero_shot.mgps import SCHEDULES, bridge

SHAPE = (3, 4, 4)

# ---- recorded runs of an independent implementation


class Recorded:
    """The recorded runs, with their denoiser: float64 inside, float32 out."""

    def __init__(self, records: dict[str, Any]):
        self.records, meta = records, records["meta"]
        variances, Q = torch.linalg.eigh(meta["C"].double())
        self.prior = Gaussian(variances.clamp(min=0), meta["mean"].double(), Q)
        self.noise, self.bank = meta["noise"], records["bank"]

    def denoiser(self, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        return self.prior(x.double(), sigma, problem).float()

    def problem(self, family: str, noise_level: float) -> Problem:
        entry = self.records["degradations"][family]
        y = (entry["y_noisy0_1"] if noise_level else entry["y"])[:, 0]
        op: LinearOperator
        if family == "matrix":
            op = DenseMatrix(entry["tensors"]["deg_matrix"], (3, 8, 8))
        elif family == "none":
            op, y = NullOperator(2, (3, 8, 8)), 0 * y[:, :1]
        else:
            op = Mask(entry["tensors"]["deg_mask"][:, 0], (3, 8, 8))
        return Problem(op, y, noise_level)

    def out(self, sampler: str, family: str, noise_level: float) -> Tensor:
        run = self.records["runs"][f"{sampler}/{family}/noise{noise_level}"]
        assert run["num_steps"] == 20
        return run["out"]


@pytest.fixture
def recorded(golden: Callable[[str], Any]) -> Recorded:
    return Recorded(golden("samplers"))


each_family = pytest.mark.parametrize("family", ["matrix", "patches", "box", "none"])
each_level = pytest.mark.parametrize("noise_level", [0.0, 0.1])


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@each_family
@each_level
def test_ddnm_replays_the_recorded_runs(recorded, family, noise_level):
    problem, rng = recorded.problem(family, noise_level), Replay(recorded.bank)
    theirs = recorded.out("project", family, noise_level)
    near(DDNM(20, released=True)(recorded.denoiser, recorded.noise, problem, rng), theirs)
    assert rng.calls == 20
    ours = DDNM(20)(recorded.denoiser, recorded.noise, problem, Replay(recorded.bank))
    assert (ours - theirs).abs().max() > 0.05  # its noise has the whole variance


class TwoDraws:
    """Draws of the recorded DDRM runs: the second of every step, negative, in the range of Hᵀ."""

    def __init__(self, bank: Tensor, op: LinearOperator):
        self.bank, self.op, self.calls = bank, op, 0

    def randn_like(self, x: Tensor) -> Tensor:
        free, seen = self.bank[self.calls], -self.bank[self.calls + 1]
        self.calls += 2
        return free + self.op.V(self.op.Vt(seen - free))


@each_family
def test_ddrm_replays_the_recorded_runs(recorded, family):
    problem = recorded.problem(family, 0.0)
    rng = TwoDraws(recorded.bank, problem.degradation)
    out = DDRM(20)(recorded.denoiser, recorded.noise, problem, rng)
    near(out, recorded.out("ddrm", family, 0.0))
    assert rng.calls == 40


@pytest.mark.parametrize("family", ["matrix", "patches", "box"])
def test_ddrm_with_noise_keeps_what_is_measured(recorded, family):
    """The recorded runs end on zero in the measured directions; ours near y."""
    problem, op = recorded.problem(family, 0.1), recorded.problem(family, 0.1).degradation
    theirs = recorded.out("ddrm", family, 0.1)
    rng = TwoDraws(recorded.bank, op)
    ours = DDRM(20)(recorded.denoiser, recorded.noise, problem, rng)
    assert op.Vt(theirs).abs().max() < 1e-5
    error = (problem.residual(ours).square().sum() / op.rows.sum()).sqrt()
    assert 0.01 < error < 0.25  # the level of the noise is 0.1
    assert op.Vt(ours).abs().max() > 0.5


@each_family
def test_pigdm_replays_the_recorded_runs(recorded, family):
    problem = recorded.problem(family, 0.0)
    out = PiGDM(20, eta=0)(recorded.denoiser, recorded.noise, problem, Replay(recorded.bank))
    near(out, recorded.out("pigdm", family, 0.0))


@pytest.mark.parametrize("family", ["matrix", "patches", "box"])
def test_pigdm_with_noise_replays_without_our_variance(recorded, family):
    """There H†y/(1 + σₙ²), whatever the noise level of x; here H† is regularised by σₙ/r."""
    problem = recorded.problem(family, 0.1)
    theirs = recorded.out("pigdm", family, 0.1)
    ours = PiGDM(20, eta=0)(recorded.denoiser, recorded.noise, problem, Replay(recorded.bank))
    assert (ours - theirs).abs().max() > 0.05
    op, plain = problem.degradation, problem.degradation.H_pinv
    op.H_pinv = lambda y, level=0.0: plain(y) / (1 + 0.1**2)
    out = PiGDM(20, eta=0)(recorded.denoiser, recorded.noise, problem, Replay(recorded.bank))
    near(out, theirs)


class AllRows:
    """An operator whose rows are all said to exist."""

    @property
    def rows(self) -> Tensor:
        return torch.ones(len(self), 1, dtype=torch.bool)  # type: ignore[arg-type]


class AllRowsOfMask(AllRows, Mask):
    pass


class AllRowsOfMatrix(AllRows, DenseMatrix):
    pass


@pytest.mark.parametrize("family", ["matrix", "patches", "box"])
@each_level
def test_dps_replays_the_recorded_runs_as_one_image(recorded, family, noise_level):
    """There the norm is that of the batch, and of rows that do not exist, which have noise too:
    here the batch is one image of six channels, and all rows exist."""
    problem = recorded.problem(family, noise_level)
    op: LinearOperator = problem.degradation
    if isinstance(op, Mask):
        op = AllRowsOfMask(op.mask.expand(2, 3, 8, 8).reshape(1, 6, 8, 8), (6, 8, 8))
    else:
        rows = recorded.records["degradations"][family]["tensors"]["deg_matrix"]
        op = AllRowsOfMatrix(torch.block_diag(*rows)[None], (6, 8, 8))

    def denoiser(x, sigma, given):
        return recorded.denoiser(x.view(2, 3, 8, 8), sigma, given).view(x.shape)

    one = Problem(op, problem.y.reshape(1, -1), noise_level)
    rng = Replay(recorded.bank.view(-1, 1, 6, 8, 8))
    out = DPS(20, released=True)(denoiser, recorded.noise.view(1, 6, 8, 8), one, rng)
    near(out.view(2, 3, 8, 8), recorded.out("dps", family, noise_level))


# ---- the originals, in variance-preserving notation


def vp_chain(noise: Tensor, steps: int, denoiser: Callable, step: Callable[..., Tensor]) -> Tensor:
    """x √ᾱ down the grid; `step(x, x̂, ε̂, ᾱ, ᾱ')` with x̂ attached to x, which needs a gradient."""
    grid = karras_grid(steps).tolist()
    x = noise * grid[0] / math.sqrt(1 + grid[0] ** 2)
    for sigma, following in pairwise(grid):
        alpha, after = 1 / (1 + sigma**2), 1 / (1 + following**2)
        x = x.detach().requires_grad_()
        estimate = denoiser(x / math.sqrt(alpha), sigma, None)
        noise_found = (x - math.sqrt(alpha) * estimate) / math.sqrt(1 - alpha)
        x = step(x, estimate, noise_found.detach(), alpha, after)
    return x.detach()


@pytest.fixture
def case() -> tuple[Gaussian, Tensor, Problem]:
    return make_prior(), gaussian(2, *SHAPE, seed=7), posed(operators(2)["matrix"], 0.1)


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
        back = H.H_pinv(problem.residual(estimate.detach()), problem.noise_level / r)
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
    for level, sigma in zip(levels, karras_grid(8)[:-1].tolist(), strict=True):
        assert level.item() ** 2 == pytest.approx(1 * 0.1**2 / sigma**2)


def spectral() -> tuple[Problem, list[list[float]], Tensor, Tensor]:
    """Measurements whose τ lies above, between and below all levels; s, and Vᵀx and ȳ of it."""
    U, _ = torch.linalg.qr(gaussian(2, 6, 6, seed=4))
    V, _ = torch.linalg.qr(gaussian(2, 48, 48, seed=5))
    s = torch.tensor([[1.5, 0.9, 0.2, 0.05, 0.004, 0.0008], [1.2, 0.6, 0.3, 0.02, 0.001, 0.0]])
    op = DenseMatrix((U * s.double()[:, None]) @ V[:, :, :6].mT, SHAPE, tol=0.0)
    problem = posed(op, torch.tensor([0.1, 0.3], dtype=torch.float64))
    seen = (U.mT @ problem.y[..., None])[..., 0]
    return problem, s.tolist(), V, seen


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.85, 0.6), (0.3, 0.9), (1.0, 0.5)])
def test_ddrm_with_noise_coordinate_by_coordinate(eta, eta_b):
    """Equations 4 and 5 of the paper, one coordinate after the other."""
    problem, s, V, seen = spectral()
    prior, noise, rng = make_prior(), gaussian(2, *SHAPE, seed=7), Draws([0, 1])
    grid = karras_grid(9).tolist()

    def rotated(x: Tensor) -> Tensor:
        return (V.mT @ x.flatten(1)[..., None])[..., 0]

    def measured(b: int, i: int) -> tuple[float, float]:
        """ȳ and its standard deviation."""
        if i >= 6 or not s[b][i]:
            return 0.0, math.nan
        return seen[b, i].item() / s[b][i], problem.noise_level[b].item() / s[b][i]

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
                noisy = a * problem.noise_level[b].item()
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


@pytest.mark.parametrize("released", [False, True])
def test_daps_is_its_algorithm(released):
    """Once more, with the density differentiated automatically."""
    prior, noise, rng = make_prior(), gaussian(2, *SHAPE, seed=7), Draws([0, 1])
    op = operators(2)["matrix"]
    problem = posed(op, torch.tensor([0.2, 0.01], dtype=torch.float64))
    tau = [0.2, 0.05]  # the floor
    norms = torch.linalg.matrix_norm(dense(op), 2).tolist()
    options = {"lr": 4e-3, "lr_last": 0.2, "noise_floor": 0.05, "langevin_steps": 7}
    levels, shortened = karras_grid(5, 0.1, 100.0).tolist(), set()
    x = levels[0] * noise
    for step, (sigma, following) in enumerate(pairwise(levels)):
        mean = x
        for high, low in pairwise(karras_grid(4, 0.02, sigma).tolist()):
            mean = mean + (low - high) * (mean - prior(mean, high, None)) / high
        if released and not following:
            x = mean
            break
        rate, x = 4e-3 * (1 - 0.8 * step / 5), mean
        for _ in range(7):
            x, z = x.detach().requires_grad_(), rng.randn_like(mean)
            moved = []
            residual = problem.residual(x)
            for b in range(2):
                log_density = -residual[b].square().sum() / (2 * tau[b] ** 2)
                log_density = log_density - (x[b] - mean[b]).square().sum() / (2 * sigma**2)
                slope = torch.autograd.grad(log_density, x, retain_graph=True)[0][b]
                lr = min(rate, 1.5 / ((norms[b] / tau[b]) ** 2 + 1 / sigma**2))
                shortened.add(lr < rate)
                moved.append(x[b] + lr * slope + math.sqrt(2 * lr) * z[b])
            x = torch.stack(moved).detach()
        if following:
            x = x + following * rng.randn_like(x)
    assert shortened == {False, True}
    sampler = DAPS(5, ode_steps=4, ode_sigma_min=0.02, released=released, **options)
    out = sampler(prior, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(out, x, rtol=1e-8, atol=1e-8)


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
    grid, kinds, k = karras_grid(12).tolist(), set(), 4
    y, tau = torch.zeros(2, 1, 48).double(), torch.full((2, 1, 48), math.inf).double()
    for b in range(2):
        for i in (i for i in range(6) if s[b][i]):
            y[b, 0, i], tau[b, 0, i] = seen[b, i] / s[b][i], problem.noise_level[b] / s[b][i]

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
        level = problem.noise_level.double()
        return explain(problem, mean, spread, level, Unit(draw, place)).flatten()

    centre = sampled(0, 0)
    columns = [sampled(1, i) - centre for i in range(48)] + [
        sampled(2, i) - centre for i in range(9)
    ]
    A = torch.stack(columns, 1)
    torch.testing.assert_close(centre, exact[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(A @ A.T, exact[1], rtol=0, atol=1e-7)


def small() -> tuple[Gaussian, Problem]:
    """Twelve pixels, three measurements with noise."""
    Q, _ = torch.linalg.qr(gaussian(12, 12))
    prior = Gaussian(torch.logspace(-1, 0.3, 12).double(), 0.3 * gaussian(12, seed=1), Q)
    op = DenseMatrix(gaussian(1, 3, 12, seed=2) / 2, (3, 2, 2))
    return prior, Problem(op, gaussian(1, 3, seed=3), 0.2)


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


N = 3000  # the error of a mean is 0.018, of a variance 0.026


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
    sampler = MCGdiff(120, sigma_min=0.01, sigma_max=20.0, particles=16)
    out = sampler(prior, gaussian(N // 2, 3, 2, 2), problem.expand(N // 2), Generator())
    mean, variance = deviations(out, *law)
    assert mean < 0.12 and variance < 0.18
    if not noise_level:
        assert problem.expand(N // 2).residual(out).abs().max() < 1e-6


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
    noise = gaussian(1000, 3, 2, 2)
    out = MGPS(schedule="mixture", lr=0.1)(prior, noise, problem.expand(1000), Generator())
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
