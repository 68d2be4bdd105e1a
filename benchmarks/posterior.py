"""Samplers against exact posteriors, on priors whose denoiser is known in closed form.

`python -m benchmarks.posterior -h` lists the commands: on a mixture of 25 Gaussians, and on a
Gaussian fitted to crops of the built-in photos.

Tables are printed; with `--name NAME` they are also written to benchmarks/results/NAME.json, and
pictures to docs/NAME.png. Samplers come from the registry: zero-shot ones get the prior's denoiser,
the others the exact conditional one, an oracle for trained networks.

The mixture is that of Cardoso et al., "Monte Carlo guided diffusion for Bayesian linear inverse
problems", 2024, which Janati et al., "A mixture-based framework for guiding diffusion models",
2025, take up: 25 unit Gaussians with means 8·(i, j, i, j, ...), weights squared normals, H with
uniform singular values and noise below the largest of them.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import click
import torch
from scipy.stats import t as student_t
from torch import Tensor

from benchmarks.pictures import draw_evaluations, draw_marginals
from benchmarks.report import CONTEXT, benchmark, save_picture
from datautils.photos import Photos
from degradation import (
    FAMILIES,
    DenseMatrix,
    Draws,
    Family,
    GaussianNoise,
    Problem,
    derive_seed,
    get_family,
)
from metrics.dataset import load_images
from metrics.distances import sliced_wasserstein
from networks import GaussianMixture, fit_gaussian, posterior
from runtime.progress import each
from runtime.tables import fixed, table
from samplers import CountingDenoiser, Sampler, make_sampler, sampler_names
from samplers.base import Denoiser, OnGrid
from zero_shot import ZeroShot

FLOOR = "exact samples"
CROPS = 16_000  # to which a Gaussian is fitted
FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # of a sampler's own number of steps

# Options of the mixture benchmark of the MCGdiff and MGPS papers, where they differ from images.
MIXTURE_OPTIONS: dict[str, dict[str, str]] = {
    "daps": {"inner": "exact"},
    "dps": {"zeta": "0.1"},
    "diffpir": {"zeta": "1"},
    "mgps": {"schedule": "mixture", "lr": "0.1", "noise_floor": "1e-6"},
    "mcgdiff": {"particles": "64"},
}


@dataclass(frozen=True)
class Run:
    """Samples of one problem by one sampler: `[n, C, h, w]`, float64."""

    x: Tensor
    evaluations: int
    backward_passes: int
    seconds: float


def solve(sampler: Sampler, prior: Denoiser, exact: Denoiser, problem: Problem, count: int) -> Run:
    """`count` samples of a problem (a batch of one). A zero-shot sampler gets the denoiser of the
    prior, any other the one that knows y."""
    denoiser = CountingDenoiser(prior if isinstance(sampler, ZeroShot) else exact, count)
    seeds = [derive_seed("solve", i) for i in range(count)]
    noise = Draws(seeds).normal(problem.degradation.image_shape, "latent").to(problem.y)
    start = time.perf_counter()
    with torch.no_grad():
        x = sampler(denoiser, noise, problem.expand(count), Draws(seeds))
    seconds = time.perf_counter() - start
    return Run(x.double(), denoiser.calls, denoiser.backward_passes, seconds)


def exact_run(exact: GaussianMixture, count: int, name: str) -> Run:
    """Samples of the posterior itself."""
    draws = Draws([derive_seed("exact", name, i) for i in range(count)])
    return Run(exact.sample(draws), 0, 0, 0.0)


def title_of(name: str) -> str:
    """The name of a row of a table. An oracle's denoiser knows y."""
    plain_name = name in (FLOOR, "prior") or isinstance(make_sampler(name), ZeroShot)
    return name if plain_name else f"{name} (oracle)"


# ---- the mixture of 25 Gaussians


def mixture_case(d: int, rows: int, seed: int) -> tuple[GaussianMixture, Problem, GaussianMixture]:
    """A prior of images of shape (1, 1, d), a problem of it (a batch of one), its posterior.

    25 unit Gaussians; H with singular values from U(0, 1), noise of U(0, 1) times the largest.
    """
    seed, steps = derive_seed(d, seed), torch.arange(-2.0, 3.0)
    means = 8 * torch.cartesian_prod(steps, steps).repeat(1, d // 2)
    weights = Draws([derive_seed("weights", seed)]).normal((25,), "w")[0].square()
    shape = (1, 1, d)
    prior = GaussianMixture(weights.log()[None], means[None], torch.ones(1, 1, d), None, shape)
    draws = Draws([derive_seed("problem", rows, seed)])
    U, _, Vt = torch.linalg.svd(draws.normal((rows, d), "H").double(), full_matrices=False)
    s = draws.uniform((rows,), "s").double().sort(descending=True).values
    operator = DenseMatrix((U * s[:, None]) @ Vt, shape, tol=0.0)
    noise = GaussianNoise(float(draws.uniform((), "noise")) * float(s.amax()))
    problem = noise.measure(operator, prior.sample(draws), draws)
    return prior, problem, posterior(prior, problem)


def mixture_sampler(name: str, d: int, **options: str) -> Sampler:
    """With the benchmark's options, and a largest noise level well beyond the means' spread.

    An oracle starts from ten times that: noise of level σ around 0 rather than the posterior mean
    m gives modes on its side wrong shares, by about |m|/σ.
    """
    options, sampler = MIXTURE_OPTIONS.get(name, {}) | options, make_sampler(name)
    if isinstance(sampler, OnGrid):
        spread = 160 if isinstance(sampler, ZeroShot) else 1600
        options["sigma_max"] = str(spread * math.sqrt(d / 2))
    return make_sampler(name, options)


def mixture_study(
    d: int, rows: int, seed: int, count: int, samplers: Mapping[Any, Sampler]
) -> tuple[dict[Any, Run], dict[Any, float]]:
    """Runs on one problem and their distances, by the keys of the samplers; those of exact samples
    and of the prior's first."""
    prior, problem, exact = mixture_case(d, rows, seed)
    reference = exact_run(exact, count, "reference").x.flatten(1)
    plain_samples = prior.sample(Draws([derive_seed("prior", i) for i in range(count)]))
    runs = {FLOOR: exact_run(exact, count, "floor"), "prior": Run(plain_samples, 0, 0, 0.0)}
    runs |= {key: solve(s, prior, exact, problem, count) for key, s in samplers.items()}
    return runs, {key: sliced_wasserstein(r.x.flatten(1), reference) for key, r in runs.items()}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and half the width of its 95 % confidence interval over problems, two or more
    (Student's t)."""
    count = len(values)
    half = float(student_t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return {"mean": statistics.fmean(values), "half_width": half, "count": count}


def mixture_rows(d: int, problems: int, count: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each sampler, with a cell for each number of measurements."""
    rows: dict[str, dict[str, Any]] = {}
    samplers = {name: mixture_sampler(name, d) for name in names}
    cases = [(r, seed) for r in (1, 2, 4) for seed in range(problems)]
    for measured, seed in each(cases, f"d = {d}", "problems"):
        runs, distances = mixture_study(d, measured, seed, count, samplers)
        for name, run in runs.items():
            row = rows.setdefault(name, {"sampler": name, "seconds": 0.0, "distances": {}})
            row |= {"evaluations": run.evaluations, "backward_passes": run.backward_passes}
            row["seconds"] += run.seconds / len(cases)
            row["distances"].setdefault(measured, []).append(distances[name])
    for row in rows.values():
        row["sliced_wasserstein"] = {m: interval(v) for m, v in row["distances"].items()}
    return list(rows.values())


def mixture_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Sliced distances with confidence intervals."""
    cells = []
    for row in rows:
        found = row["sliced_wasserstein"].values()
        values = [f"{fixed(v['mean'])} ± {fixed(v['half_width'])}" for v in found]
        cells.append([title_of(row["sampler"]), row["evaluations"], *values, row["seconds"]])
    headers = ["sampler", "NFE", "1 measurement", "2 measurements", "4 measurements", "seconds"]
    return table(headers, cells)


# ---- a Gaussian fitted to crops of photos


def problem_of(
    prior: GaussianMixture, family: Family, index: int, seed: int, noise_level: float
) -> Problem:
    """A problem (a batch of one) of an image drawn from the prior; structures take turns by the
    index."""
    structures, draws = family.structures(), Draws([seed])
    operator = family.sample(prior.image_shape, structures[index % len(structures)], [seed])
    noise = GaussianNoise(noise_level)
    return noise.measure(operator.to(torch.float64), prior.sample(draws), draws)


def image_problems(
    prior: GaussianMixture, noise_level: float, wanted: Sequence[str]
) -> dict[str, Problem]:
    """A problem of an image drawn from the prior for each family that has one of this size."""
    found = {}
    for name in wanted or FAMILIES:
        try:
            family = get_family(name)
            family.check(prior.image_shape)
        except ValueError as error:
            print(f"left out: {error}")
            continue
        problem = problem_of(prior, family, 0, derive_seed("image", name), noise_level)
        if problem.degradation.rows.any() and name != "RandomDegradation":
            found[name] = problem
    return found


def image_errors(run: Run, exact: GaussianMixture) -> dict[str, float]:
    """How far the samples of one problem are from its Gaussian posterior N(m, C).

    mean: ‖m̂ − m‖/√tr C; covariance: ‖Ĉ − C‖/‖C‖ (Frobenius); spread: √(tr Ĉ/tr C); coverage of
    each credible interval: what the posterior gives to the samples' central interval of a pixel;
    psnr_loss: of m̂ below m as an estimate of the image, expected, in dB.
    """
    x, mean, covariance = run.x.flatten(1), exact.mean().flatten(), exact.covariance()[0]
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    own = torch.cov(x.mT)
    error = (x.mean(0) - mean).square().sum() / covariance.trace()
    found = {
        "mean": error.sqrt(),
        "covariance": (own - covariance).norm() / covariance.norm(),
        "spread": (own.trace() / covariance.trace()).sqrt(),
        "psnr_loss": 10 * (1 + error).log10(),
    }
    free = deviation > 1e-3 * deviation.amax()  # a pixel that was measured without noise is known
    for level in (0.5, 0.9, 0.95):
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=x.dtype)
        z = (x.quantile(edges, 0) - mean)[:, free] / deviation[free]
        low, high = torch.special.ndtr(z)
        found[f"coverage_{round(100 * level)}"] = (high - low).mean()
    return {name: float(value) for name, value in found.items()}


def image_runs(
    prior: GaussianMixture, exact: GaussianMixture, problem: Problem, names: Sequence[str],
    count: int, title: str,
) -> dict[str, Run]:  # fmt: skip
    """Exact samples of a problem, then those of each sampler with the options of this benchmark."""
    runs = {FLOOR: exact_run(exact, count, "floor")}
    for name in each(names, title, "samplers"):
        runs[name] = solve(image_sampler(name), prior, exact, problem, count)
    return runs


def image_sampler(name: str) -> Sampler:
    """With the options of this benchmark."""
    return make_sampler(name, {"inner": "exact"} if name == "daps" else None)


def image_rows(
    prior: GaussianMixture, problems: Mapping[str, Problem], count: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each family and sampler."""
    rows = []
    for family, problem in problems.items():
        exact = posterior(prior, problem)
        mse = float(exact.covariance()[0].diagonal().mean())
        for name, run in image_runs(prior, exact, problem, names, count, family).items():
            rows.append({
                "family": family, "sampler": name, "evaluations": run.evaluations,
                "backward_passes": run.backward_passes, "seconds": run.seconds,
                "exact_psnr": 10 * math.log10(4 / mse), **image_errors(run, exact),
            })  # fmt: skip
    return rows


_ERRORS = {  # titles
    "mean": "mean", "covariance": "covariance", "spread": "spread", "coverage_50": "50 %",
    "coverage_90": "90 %", "coverage_95": "95 %", "psnr_loss": "PSNR loss (dB)",
}  # fmt: skip


def image_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians over the families."""
    cells = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        medians = [fixed(statistics.median(row[key] for row in own), 3) for key in _ERRORS]
        seconds = statistics.fmean(row["seconds"] for row in own)
        cells.append([title_of(name), own[0]["evaluations"], *medians, seconds])
    return table(["sampler", "NFE", *_ERRORS.values(), "seconds"], cells)


def evaluation_curves(
    names: Sequence[str], problems: int, count: int
) -> dict[str, list[dict[str, Any]]]:
    """For each sampler, at multiples of its own number of steps: evaluations, and the mean sliced
    distance over problems in 8 dimensions with 2 measurements."""
    samplers = {}
    for name in names:
        default = mixture_sampler(name, 8).num_steps
        for steps in [max(4, round(default * f)) for f in FACTORS if default * f <= 1000]:
            samplers[name, steps] = mixture_sampler(name, 8, num_steps=str(steps))
    seeds = each(range(problems), "evaluations", "problems")
    studies = [mixture_study(8, 2, seed, count, samplers) for seed in seeds]

    def point(key: Any) -> dict[str, Any]:
        mean = statistics.fmean(distances[key] for _, distances in studies)
        return {"evaluations": studies[0][0][key].evaluations, "sliced_wasserstein": mean}

    curves = {FLOOR: [point(FLOOR)]}
    for name, steps in samplers:
        curves.setdefault(name, []).append({"num_steps": steps, **point((name, steps))})
    return curves


# ---- the commands

SAMPLING = [name for name in sampler_names("denoising") if name != "mmse"]
COUNT = click.IntRange(2)
problems_option = click.option("--problems", type=COUNT, default=3, help="Of each kind.")


def chosen_samplers(names: Sequence[str]) -> list[str]:
    """All that draw samples, oracles first."""
    known = [name for name in SAMPLING if not names or name in names]
    return sorted(known, key=lambda name: (isinstance(make_sampler(name), ZeroShot), name))


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Samplers against exact posteriors."""
    torch.set_num_threads(1)


def sampling(function: Callable[..., Any]) -> click.Command:
    """A subcommand with samples of some samplers."""
    sampler = click.option(
        "--sampler", "names", type=click.Choice(SAMPLING), multiple=True,
        callback=lambda ctx, parameter, names: chosen_samplers(names),
        help="Only these; may be repeated.",
    )  # fmt: skip
    samples = click.option("--samples", type=COUNT, default=512, help="Of each problem.")
    return benchmark(main)(samples(sampler(function)))


@sampling
@click.option("--dimension", type=click.Choice(["8", "80", "800"]), default="8")
@problems_option
def mixture(dimension: str, problems: int, samples: int, names: list[str]) -> Any:
    """Sliced Wasserstein distance on the mixture of 25 Gaussians."""
    d = int(dimension)
    rows = mixture_rows(d, problems, samples, names)
    options = {name: asdict(mixture_sampler(name, d)) for name in names}
    record = {"dimension": d, "samples": samples, "rows": rows, "options": options}
    return mixture_table(rows), record


@sampling
def marginals(samples: int, names: list[str]) -> Any:
    """Draw samples of the problem in 8 dimensions, among ten, whose posterior has most modes."""
    exact = [mixture_case(8, 1, seed)[2] for seed in range(10)]
    seed = min(range(10), key=lambda seed: exact[seed].log_weights.exp().square().sum())
    samplers = {name: mixture_sampler(name, 8) for name in names}
    runs, found = mixture_study(8, 1, seed, samples, samplers)
    points = {title_of(name): run.x.flatten(1)[:, :2] for name, run in runs.items()}
    distances = {title_of(name): value for name, value in found.items()}
    text = table(["sampler", "sliced Wasserstein distance"], list(distances.items()))
    draw = partial(draw_marginals, exact[seed], points, distances)
    return text, None, lambda name: save_picture(name, draw())


@sampling
@click.option("--size", type=click.IntRange(1), default=8, help="Side of the crops, pixels.")
@click.option("--noise-level", type=click.FloatRange(0), default=0.05, help="Of images in [-1, 1].")
@click.option("--family", "families", type=click.Choice(list(FAMILIES)), multiple=True)
def images(
    size: int, noise_level: float, families: Sequence[str], samples: int, names: list[str]
) -> Any:
    """Mean, covariance and credible intervals on a Gaussian fitted to crops of photos."""
    crops = load_images(Photos(size, "train", size=CROPS), CROPS)
    prior = fit_gaussian(crops)
    rows = image_rows(prior, image_problems(prior, noise_level, families), samples, names)
    options = {name: asdict(image_sampler(name)) for name in names}
    record = {"size": size, "noise_level": noise_level, "samples": samples, "crops": len(crops),
              "rows": rows, "options": options}  # fmt: skip
    return image_table(rows), record


@sampling
@problems_option
def evaluations(problems: int, samples: int, names: list[str]) -> Any:
    """Sliced Wasserstein distance against the number of evaluations, on the mixture."""
    curves = evaluation_curves(names, problems, samples)
    cells = [[title_of(name), point["evaluations"], point["sliced_wasserstein"]]
             for name, points in curves.items() for point in points]  # fmt: skip
    options = {name: asdict(mixture_sampler(name, 8)) for name in names}
    record = {"problems": problems, "samples": samples, "curves": curves, "options": options}
    titled = {title_of(name): points for name, points in curves.items()}
    text = table(["sampler", "NFE", "sliced Wasserstein distance"], cells)
    return text, record, lambda name: save_picture(name, draw_evaluations(titled, FLOOR))


if __name__ == "__main__":
    main()
