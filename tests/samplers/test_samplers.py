"""Samplers on a Gaussian prior, whose denoiser, flow and posterior are known in closed form.

The tests that use `recorded` replay recorded runs of an independent implementation, and are skipped
without them; the orders of convergence to the exact flow, `test_churn_keeps_the_distribution` and
`test_mmse_is_the_posterior_mean` check the same by closed forms.
"""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import scipy.stats
import torch
from exact_gaussian import Gaussian, Generator, NoNoise, Replay, recorded_denoiser
from helpers import gaussian
from torch import Tensor

from degradation import Draws, Mask, Problem
from samplers import (
    DEIS,
    DPM,
    MMSE,
    CountingDenoiser,
    Euler,
    Heun,
    Sampler,
    base,
    make_sampler,
    register,
    sampler_names,
)
from samplers.deis import adams_bashforth

SHAPE = (3, 2, 2)
P_VALUE = 1e-3  # the seeds are fixed, so a pass stays a pass; a wrong law gives far below 1e-9


@pytest.fixture
def prior() -> Gaussian:
    variances = torch.logspace(-3, 0.5, 12, dtype=torch.float64)
    Q, _ = torch.linalg.qr(gaussian(12, 12))
    return Gaussian(variances, 0.3 * gaussian(12, seed=1), Q)


def plain(batch: int) -> Problem:
    return Problem.without_measurement(batch, SHAPE)


# The flow and the order of convergence


def errors(sampler, prior: Gaussian, steps: list[int], sigma_min=1e-3, sigma_max=40.0) -> Tensor:
    """Root-mean-square distance to the exact flow for each number of steps."""
    noise = gaussian(6, *SHAPE, seed=2)
    exact = prior.flow(sigma_max * noise, sigma_max)
    results = []
    for n in steps:
        sample = sampler(num_steps=n, sigma_min=sigma_min, sigma_max=sigma_max)
        out = sample(prior, noise, plain(6), NoNoise())
        results.append((out - exact).square().mean().sqrt())
    return torch.stack(results)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (Euler, 1), (Heun, 2), (DPM, 2), (partial(DEIS, order=1), 1), (partial(DEIS, order=2), 2),
        (partial(DEIS, order=3), 3), (partial(DEIS, order=4), 4),
    ],
)  # fmt: skip
def test_order_of_convergence_to_the_exact_flow(prior, sampler, order):
    error = errors(sampler, prior, [40, 80, 160, 320])
    orders = (error[:-1] / error[1:]).log2()
    # The first steps of DEIS are of lower order, where the slope hardly changes.
    assert (orders - order).abs().max() < (0.2 if order < 4 else 0.4), orders.tolist()


def test_heun_reaches_the_exact_flow(prior):
    assert errors(Heun, prior, [32]) < 1e-2
    assert errors(Heun, prior, [1000], sigma_min=1e-4) < 1e-5
    assert errors(Euler, prior, [32]) > 5 * errors(Heun, prior, [32])


def test_memory_buys_accuracy(prior):
    """With as many evaluations as Euler."""
    euler, deis, dpm = (errors(sampler, prior, [40]) for sampler in (Euler, DEIS, DPM))
    assert deis < euler / 10
    assert dpm < euler / 5


def test_deis_of_first_order_is_euler(prior):
    noise = gaussian(2, *SHAPE)
    ours = DEIS(num_steps=9, order=1)(prior, noise, plain(2), NoNoise())
    torch.testing.assert_close(ours, Euler(num_steps=9)(prior, noise, plain(2), NoNoise()))


@pytest.mark.parametrize("sampler", [Euler, Heun, DPM, DEIS])
def test_levels_that_are_one_give_its_estimate(prior, sampler):
    noise = gaussian(2, *SHAPE)
    out = sampler(num_steps=3, sigma_min=1.0, sigma_max=1.0)(prior, noise, plain(2), NoNoise())
    torch.testing.assert_close(out, prior(noise, 1.0, plain(2)))


def test_deis_integrates_polynomials_exactly():
    nodes, end = [2.0, 3.5, 3.9, 7.0], 0.5
    for power in range(4):
        area = sum(w * x**power for w, x in zip(adams_bashforth(nodes, end), nodes, strict=True))
        exact = (end ** (power + 1) - nodes[0] ** (power + 1)) / (power + 1)
        assert area == pytest.approx(exact, rel=1e-12)
    two = adams_bashforth([2.0, 2.6], 1.7)  # the closed form of two steps
    h, before = -0.3, -0.6
    assert two == pytest.approx([h * (1 + h / (2 * before)), -(h**2) / (2 * before)])


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_stochastic_dpm_keeps_the_distribution(prior, eta):
    n = 4000
    sampler = DPM(num_steps=100, eta=eta)
    z = prior.coordinates(sampler(prior, gaussian(n, *SHAPE, seed=3), plain(n), Generator()))
    for direction in range(3, 12):
        assert scipy.stats.kstest(z[:, direction].numpy(), "norm").pvalue > P_VALUE


def test_the_stochastic_dpm_forgets_where_it_started(prior):
    noise = gaussian(1000, *SHAPE, seed=3)
    start = prior.coordinates(prior.flow(80 * noise, 80.0)).flatten()
    for eta, low, high in ((0.0, 0.99, 1.0), (1.0, -0.05, 0.05)):
        out = DPM(num_steps=50, eta=eta)(prior, noise, plain(1000), Generator())
        similarity = torch.corrcoef(torch.stack((start, prior.coordinates(out).flatten())))[0, 1]
        assert low <= similarity <= high + 1e-9, (eta, similarity)


@pytest.mark.parametrize("sampler", [Euler(5), Heun(5), DPM(5)])
def test_directions_without_variance_end_on_the_mean(prior, sampler):
    prior.variances[:4] = 0
    out = sampler(prior, gaussian(6, *SHAPE), plain(6), NoNoise())
    along = (out.flatten(1) - prior.mean) @ prior.Q
    assert along[:, :4].abs().max() < 1e-12
    assert along[:, 4:].abs().min() > 1e-5


@pytest.mark.parametrize(
    "sampler", [Euler(), Heun(), Heun(churn=20), MMSE(), DPM(), DPM(eta=1), DEIS()]
)
def test_samplers_keep_precision_and_leave_the_noise_alone(prior, sampler):
    noise = gaussian(2, *SHAPE)
    before = noise.clone()
    out = sampler(prior, noise, plain(2), Draws([1, 2]))
    assert out.dtype == torch.float64 and out.shape == noise.shape
    assert torch.equal(noise, before)


@pytest.mark.parametrize(
    "sampler", [Euler(8), Heun(num_steps=8, churn=4), MMSE(), DPM(8, eta=1), DEIS(8)]
)
def test_a_sample_does_not_depend_on_its_batch(prior, sampler):
    noise = gaussian(3, *SHAPE)
    batch = sampler(prior, noise, plain(3), Draws([5, 6, 7]))
    alone = sampler(prior, noise[1:2], plain(1), Draws([6]))
    torch.testing.assert_close(batch[1:2], alone)


# Evaluations


@pytest.mark.parametrize("n", [2, 7, 32])
@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        (lambda n: Heun(num_steps=n), lambda n: 2 * n - 1),
        (lambda n: Heun(num_steps=n, churn=10), lambda n: 2 * n - 1),
        (lambda n: Euler(num_steps=n), lambda n: n),
        (lambda n: DPM(num_steps=n), lambda n: n),
        (lambda n: DEIS(num_steps=n), lambda n: n),
        (lambda n: MMSE(), lambda n: 1),
    ],
    ids=["heun", "heun with churn", "euler", "dpm", "deis", "mmse"],
)
def test_number_of_evaluations(prior, sampler, count, n):
    denoiser = CountingDenoiser(prior)
    sampler(n)(denoiser, gaussian(1, *SHAPE), plain(1), Draws([0]))
    assert denoiser.calls == count(n)


def test_the_counter_changes_nothing_and_the_denoiser_gets_the_problem(prior):
    problem, seen = plain(1), []

    def denoiser(x, sigma, given):
        seen.append((float(sigma), given))
        return prior(x, sigma, given)

    noise = gaussian(1, *SHAPE)
    counted = Euler(num_steps=4)(CountingDenoiser(denoiser), noise, problem, NoNoise())
    assert torch.equal(counted, Euler(num_steps=4)(prior, noise, problem, NoNoise()))
    assert all(given is problem for _, given in seen)
    assert [sigma for sigma, _ in seen] == Euler(4).grid()[:-1]


# Noise levels


def test_the_grid_is_that_of_edm():
    grid = Euler(18, sigma_min=0.01, sigma_max=50.0, rho=5.0).grid()
    assert len(grid) == 19
    for i in range(18):
        exact = (50 ** (1 / 5) + i / 17 * (0.01 ** (1 / 5) - 50 ** (1 / 5))) ** 5
        assert grid[i] == pytest.approx(exact, rel=1e-12)
    assert grid[18] == 0
    straight = Euler(5, 1.0, 9.0, rho=1.0).grid()
    torch.testing.assert_close(straight, [9.0, 7.0, 5.0, 3.0, 1.0, 0.0])
    defaults = Euler(32).grid()
    assert defaults[0] == pytest.approx(80) and defaults[31] == pytest.approx(0.002)


# Churn


@pytest.mark.parametrize("churn", [5.0, 40.0])
def test_churn_keeps_the_distribution(prior, churn):
    n = 4000
    out = Heun(num_steps=100, churn=churn)(
        prior, gaussian(n, *SHAPE, seed=3), plain(n), Draws(range(n))
    )
    z = prior.coordinates(out)
    for direction in range(3, 12):  # the others have a variance too small for so few steps
        assert scipy.stats.kstest(z[:, direction].numpy(), "norm").pvalue > P_VALUE
    covariance = z.T @ z / n - torch.eye(12)
    assert covariance[3:, 3:].abs().max() < 5 * math.sqrt(2 / n)


def test_churn_noise_scales_what_is_added(prior):
    n = 2000
    noise, problem = gaussian(n, *SHAPE, seed=3), plain(n)
    louder = Heun(num_steps=64, churn=30, churn_noise=1.2)(prior, noise, problem, Draws(range(n)))
    assert prior.coordinates(louder)[:, 6:].var() > 1.2


def test_churn_forgets_where_it_started(prior):
    n = 2000
    noise, problem = gaussian(n, *SHAPE, seed=3), plain(n)
    start = prior.coordinates(prior.flow(80 * noise, 80.0)).flatten()
    for churn, low, high in ((0.0, 0.999, 1.0), (1.0, 0.2, 0.8), (math.inf, -0.05, 0.05)):
        out = Heun(num_steps=64, churn=churn)(prior, noise, problem, Draws(range(n)))
        similarity = torch.corrcoef(torch.stack((start, prior.coordinates(out).flatten())))[0, 1]
        assert low <= similarity <= high + 1e-9, (churn, similarity)


def test_churn_at_most_doubles_the_variance_of_the_noise(prior):
    noise, problem = gaussian(1, *SHAPE), plain(1)
    seen = []

    def denoiser(x, sigma, problem):
        seen.append(sigma)
        return prior(x, sigma, problem)

    for churn, factor in ((4.0, 1.4), (math.inf, math.sqrt(2))):
        seen.clear()
        Heun(num_steps=10, churn=churn)(denoiser, noise, problem, Draws([0]))
        raised = [s * factor for s in Heun(10).grid()[:-1]]
        assert seen[0::2] == pytest.approx(raised)
        assert seen[1::2] == pytest.approx(Heun(10).grid()[1:-1])


GRID = Heun(24).grid()[:-1]


@pytest.mark.parametrize(
    ("low", "high", "count"),
    [
        (0.0, math.inf, 24),
        (0.05, 50.0, sum(0.05 <= sigma <= 50 for sigma in GRID)),
        (GRID[9], GRID[4], 6),  # both ends included
        (1000.0, math.inf, 0),
    ],
)
def test_churn_stays_within_its_noise_levels(prior, low, high, count):
    rng = Draws([0])
    sampler = Heun(num_steps=24, churn=5, churn_min=low, churn_max=high)
    sampler(prior, gaussian(1, *SHAPE), plain(1), rng)
    assert rng.calls == count


# Posteriors


@dataclass
class Posterior:
    """The exact denoiser of independent pixels N(0.2, variance) seen through a noisy mask."""

    variance: float = 0.5

    def moments(self, problem: Problem) -> tuple[Tensor, Tensor]:
        seen = problem.degradation.mask
        level = problem.levels.double().view(-1, 1, 1, 1)
        gain = seen * self.variance / (self.variance + level**2)
        y = problem.degradation.measurement_image(problem.y)
        return 0.2 + gain * (y - 0.2), (1 - gain) * self.variance * torch.ones_like(y)

    def __call__(self, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        mean, variance = self.moments(problem)
        return mean + variance / (variance + sigma**2) * (x - mean)


def masked(noise_level: float, copies: int) -> Problem:
    mask = Mask((gaussian(1, 1, 2, 2) > 0).double(), SHAPE)
    return Problem(mask, mask.H(gaussian(1, *SHAPE, seed=1)), noise_level).expand(copies)


@pytest.mark.parametrize("noise_level", [0.0, 0.3])
@pytest.mark.parametrize("sampler", [Heun(num_steps=64), Heun(num_steps=64, churn=10)])
def test_the_exact_conditional_denoiser_gives_posterior_samples(sampler, noise_level):
    n, denoiser = 3000, Posterior()
    problem = masked(noise_level, n)
    out = sampler(denoiser, gaussian(n, *SHAPE, seed=4), problem, Draws(range(n)))
    mean, variance = (moment[0] for moment in denoiser.moments(problem))
    if not noise_level:
        assert problem.residual(out).abs().max() < 1e-12
    z = ((out - mean) / variance.sqrt())[:, variance > 0]
    assert z.numel() >= 3 * n
    assert scipy.stats.kstest(z.flatten().numpy(), "norm").pvalue > P_VALUE


@pytest.mark.parametrize("noise_level", [0.0, 0.3])
def test_mmse_is_the_posterior_mean(noise_level):
    denoiser, problem = Posterior(), masked(noise_level, 4)
    mean, variance = denoiser.moments(problem)
    noise = gaussian(4, *SHAPE)
    exact = mean + variance / (variance + 1e4) * (100 * noise - mean)
    torch.testing.assert_close(MMSE()(denoiser, noise, problem, NoNoise()), exact)
    drowned = MMSE(sigma=1e6)(denoiser, noise, problem, NoNoise())
    torch.testing.assert_close(drowned, mean, rtol=0, atol=5e-6)


# Names and options


def test_samplers_are_known_by_name():
    names = sampler_names()
    assert {"heun", "euler", "mmse", "dpm", "deis"} <= set(names)
    assert names == sorted(names)
    assert make_sampler("heun") == Heun()
    assert make_sampler("mmse", {"sigma": "40"}) == MMSE(sigma=40.0)


def test_options_are_read_from_text():
    sampler = make_sampler("heun", {"num_steps": "16", "churn": "2.5"})
    assert sampler == Heun(num_steps=16, churn=2.5)
    assert type(sampler.num_steps) is int
    assert make_sampler("euler", {"sigma_min": "1e-2", "rho": "5"}) == Euler(
        sigma_min=0.01, rho=5.0
    )


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("newton", {}, "unknown sampler 'newton'; known are .*euler.*heun.*mmse"),
        ("euler", {"churn": "1"}, "sampler 'euler' has no option 'churn'; it has num_steps, sigma"),
        ("heun", {"num_steps": "many"}, "sampler 'heun' option num_steps='many' must be a whole"),
        ("heun", {"num_steps": "2.5"}, "num_steps='2.5' must be a whole number"),
        ("heun", {"rho": "x"}, "option rho='x' must be a number"),
        ("heun", {"num_steps": "1"}, "Heun option num_steps=1 must lie between 2 and 1000000"),
        ("heun", {"churn": "-1"}, "Heun option churn=-1.0 must lie between 0 and inf"),
        ("heun", {"churn": "nan"}, "option churn='nan' must be a number"),
        ("heun", {"churn_min": "-1"}, "Heun option churn_min=-1.0"),
        ("heun", {"churn_max": "nan"}, "option churn_max='nan' must be"),
        ("heun", {"churn_max": "-1"}, "Heun option churn_max=-1.0"),
        ("heun", {"churn_noise": "-1"}, "Heun option churn_noise=-1.0"),
        ("deis", {"order": "5"}, "DEIS option order=5 must lie between 1 and 4"),
        ("deis", {"order": "0"}, "DEIS option order=0"),
        ("dpm", {"eta": "-0.1"}, "DPM option eta=-0.1"),
        ("dpm", {"num_steps": "1"}, "DPM option num_steps=1"),
        ("euler", {"sigma_min": "90"}, "Euler option sigma_min=90.0 must lie between 1e-09 and 80"),
        ("euler", {"sigma_max": "0"}, "Euler option sigma_max=0.0 must lie between 1e-09"),
        ("euler", {"rho": "0"}, "Euler option rho=0.0"),
        ("mmse", {"sigma": "0"}, "MMSE option sigma=0.0 must lie between 0.001"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, text):
    with pytest.raises(ValueError, match=text):
        make_sampler(name, options)


def test_a_sampler_without_a_step_is_refused():
    for name in ("samplers.base.Sampler", "samplers.base.OnGrid"):
        with pytest.raises(ValueError, match="must be a dataclass with a step, sample or __call__"):
            make_sampler(name)


@pytest.mark.parametrize("decorated", [lambda cls: cls, dataclass(frozen=True)])
def test_a_new_sampler_is_one_decorated_class(monkeypatch, decorated):
    monkeypatch.setitem(base.SAMPLERS, "start", None)

    @register("start")
    @decorated
    class Start(Sampler):
        scale: float = 1.0

        def sample(self, run, noise):
            return self.scale * noise

    assert "start" in sampler_names()
    sampler = make_sampler("start", {"scale": "3"})
    assert isinstance(sampler, Start)
    noise = gaussian(1, *SHAPE)
    assert torch.equal(sampler(None, noise, plain(1), NoNoise()), 3 * noise)


# Recorded outputs of an independent implementation


@pytest.fixture
def recorded(golden):
    """Records, and their denoiser."""
    records = golden("samplers")
    return records, recorded_denoiser(records["meta"])


@pytest.mark.parametrize("churn", [0, 10])
def test_heun_replays_the_recorded_runs(recorded, churn):
    records, denoiser = recorded
    meta, run = records["meta"], records["runs"][f"edm/churn{churn}"]
    rng = Replay(records["bank"])
    sampler = Heun(
        run["num_steps"], meta["sigma_min"], meta["sigma_max"], meta["rho"], run["S_churn"]
    )
    problem = Problem.without_measurement(2, (3, 8, 8))
    out = sampler(denoiser, meta["noise"], problem, rng)
    assert rng.calls == run["n_draws"] == (20 if churn else 0)
    torch.testing.assert_close(out, run["out"], rtol=0, atol=1e-5)


def test_mmse_replays_the_recorded_run(recorded):
    records, denoiser = recorded
    problem = Problem.without_measurement(2, (3, 8, 8))
    out = MMSE()(denoiser, records["meta"]["noise"], problem, NoNoise())
    torch.testing.assert_close(out, records["runs"]["mse"]["out"], rtol=0, atol=1e-5)
