"""Trained networks against exact posteriors: the paper's claim where the truth is known.

    python -m benchmarks.exact_world --images 262144 --name exact-world

The prior is a Gaussian or a mixture, fitted to crops of the built-in photos (of `--side` pixels).
Images are drawn from it, so that no network can overfit, and the posterior of every problem is
known. The same small network is trained in four ways that differ in two switches: whether it
applies H to its features (InvFusion, not Palette), and whether input and output have y (EPS).
After 1/16, 1/4 and all of the images, samples and the MMSE estimate of each are compared with the
exact posterior, beside exact samples (the floor) and zero-shot samplers with the exact denoiser.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.pictures import draw_curves, family_axes
from benchmarks.posterior import FLOOR, Run, exact_run, image_errors, image_runs, problem_of, solve
from benchmarks.report import benchmark, save_picture
from datautils.photos import Photos
from degradation import Draws, Problem, RandomDegradation, derive_seed, get_family
from metrics.dataset import load_images
from metrics.distances import sliced_wasserstein
from networks import (
    Denoiser,
    GaussianMixture,
    LevelConfig,
    NetworkConfig,
    fit_gaussian,
    fit_mixture,
    posterior,
    posterior_mean,
)
from runtime.progress import each
from runtime.tables import fixed, table
from samplers import DPM, MMSE, Sampler
from training.config import TrainConfig
from training.data import training_batches
from training.trainer import Trainer

NOISE, CROPS = 0.05, 16_000
FAMILIES = ("MotionBlur", "MissingPatches", "MatrixDegradation", "Box")  # the last one is unseen
SETTINGS = TrainConfig(
    degradation="RandomDegradation", noise_level=NOISE, batch=64, lr=2e-3, ramp=4096, decay=None,
    cooldown=0.3, mmse_share=0.1, ema_halflife=8192, ema_ramp=0.1,
)  # fmt: skip
_TICKS = (0.02, 0.05, 0.1, 0.2)
ZERO_SHOT = (
    "ddrm", "ddnm", "ddnm_plus", "pigdm", "dps", "dds", "daps", "diffpir", "reddiff", "pnpdm",
    "mcgdiff", "mgps",
)  # fmt: skip
WAYS = {  # in two switches: Feature Degradation Layers; y in input and output
    "Palette": (False, False),
    "InvFusion": (True, False),
    "EPS": (False, True),
    "InvFusion + EPS": (True, True),
}


def network(way: str, side: int, depth: int) -> Denoiser:
    """Patches of 2×2 pixels; four blocks have 0.6 to 0.75 M parameters."""
    joint, fused = WAYS[way]
    level = LevelConfig(depth=depth, width=96, kernel=None, d_head=32, joint=joint)
    torch.manual_seed(0)
    shape = (3, side, side)
    return Denoiser(NetworkConfig(shape, 2, (level,), mapping_width=64, fused=fused))


def prior_samples(prior: GaussianMixture, count: int) -> TensorDataset:
    """A data set of `count` images drawn from a prior: (float32 image `[C, h, w]`, −1)."""
    seeds = [derive_seed("prior sample", i) for i in range(count)]
    blocks = (seeds[i : i + 1024] for i in range(0, count, 1024))
    images = torch.cat([prior.sample(Draws(block)).float() for block in blocks])
    return TensorDataset(images, torch.full((count,), -1))


def train(
    way: str, prior: GaussianMixture, images: int, depth: int
) -> Iterator[tuple[int, Denoiser]]:
    """The averaged network after 1/16, 1/4 and all of the images."""
    config = replace(SETTINGS, duration=images)
    denoiser = network(way, prior.image_shape[-1], depth)
    trainer = Trainer(config, denoiser, RandomDegradation(), torch.device("cpu"))
    dataset = prior_samples(prior, images)
    batches = training_batches(dataset, config.batch, config.seed, 0, workers=0)
    steps = images // config.batch
    for step in each(range(1, steps + 1), way, "steps"):
        trainer.step(*next(batches), step / steps)
        if step in (-(-steps // 16), -(-steps // 4), steps):
            yield trainer.progress.images, trainer.average


def problems_of(prior: GaussianMixture, count: int) -> list[tuple[str, Problem]]:
    """`count` problems of each family, of its images; every stride of the blurs in turn."""
    return [
        (name, problem_of(prior, get_family(name), i, derive_seed("held out", name, i), NOISE))
        for name in FAMILIES
        for i in range(count)
    ]


def errors_of(run: Run, exact: GaussianMixture) -> dict[str, float]:
    """Of samples: those of the benchmark of posteriors, and the sliced Wasserstein distance."""
    reference = exact_run(exact, len(run.x), "reference").x
    distance = sliced_wasserstein(run.x.flatten(1), reference.flatten(1))
    return {**image_errors(run, exact), "sliced_wasserstein": distance}


def sampled(
    denoiser: Denoiser, sampler: Sampler, problem: Problem, count: int
) -> tuple[Run, Tensor]:
    """`count` samples of a problem by a trained network, and its MMSE estimate."""
    single = Problem(problem.degradation.to(torch.float32), problem.y.float(), NOISE)
    run = solve(sampler, denoiser, denoiser, single, count)
    return run, solve(MMSE(), denoiser, denoiser, single, 1).x


def measure(
    prior: GaussianMixture, images: int, problems: int, count: int, ways: Sequence[str],
    depth: int, sampler: Sampler,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each method, number of images seen, and problem."""
    rows = []
    cases = [(name, p, posterior(prior, p)) for name, p in problems_of(prior, problems)]
    for family, problem, exact in cases:
        runs = image_runs(prior, exact, problem, ZERO_SHOT, count, family)
        for name, run in runs.items():
            rows.append({"method": name, "images": 0, "family": family, **errors_of(run, exact)})
    for way in ways:
        for seen, denoiser in train(way, prior, images, depth):
            for family, problem, exact in cases:
                run, mmse = sampled(denoiser, sampler, problem, count)
                error = (mmse - posterior_mean(prior, problem)).square().sum()
                row = {"method": way, "images": seen, "family": family, **errors_of(run, exact)}
                rows.append(row | {"mmse": float((error / exact.covariance()[0].trace()).sqrt())})
    return rows


def mean_of(
    rows: Sequence[dict[str, Any]], method: str, family: str, key: str, images: int
) -> float:
    """Over the problems of a family."""
    wanted = {"method": method, "family": family, "images": images}
    return statistics.fmean(row[key] for row in rows if wanted.items() <= row.items())


def distances_table(rows: Sequence[dict[str, Any]], key: str) -> str:
    """An error by method and family, trained ones after each number of images."""
    found = dict.fromkeys((row["method"], row["images"]) for row in rows if key in row)
    cells = [
        [m, n or None, *(fixed(mean_of(rows, m, f, key, n), 3) for f in FAMILIES)] for m, n in found
    ]
    return table(["method", "images", *FAMILIES], cells)


def draw(rows: Sequence[dict[str, Any]], key: str) -> Any:
    """The error of each trained way against the images it has seen; level lines for the others."""
    figure, (axes,) = family_axes(FAMILIES, ["distance to the exact posterior"], (13, 3.8))
    seen = {way: sorted({r["images"] for r in rows if r["method"] == way}) for way in WAYS}
    counts = sorted({r["images"] for r in rows if r["images"]})
    for axis, family in zip(axes, FAMILIES, strict=True):
        draw_curves(axis, {
            way: [(n, mean_of(rows, way, family, key, n)) for n in numbers]
            for way, numbers in seen.items() if numbers
        })  # fmt: skip
        level, best = min((mean_of(rows, m, family, key, 0), m) for m in ZERO_SHOT)
        axis.axhline(level, color="#888888", ls="--", lw=1)
        axis.annotate(f"best zero-shot: {best}", (0.02, level), (0, 3), fontsize=8,
                      xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
        axis.axhline(mean_of(rows, FLOOR, family, key, 0), color="#888888", ls=":", lw=1)
        axis.set(xscale="log", yscale="log", xlabel="images seen")
        axis.set_xticks(counts, [f"{count:,}" for count in counts])
        axis.set_yticks(_TICKS, _TICKS)
        axis.minorticks_off()
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle("Sliced Wasserstein distance of samples; dotted: exact samples", fontsize=10)
    figure.tight_layout()
    return figure


@benchmark()
@click.option("--images", type=click.IntRange(SETTINGS.batch), default=2**18)
@click.option("--problems", type=click.IntRange(1), default=6, help="Of each family.")
@click.option("--samples", type=click.IntRange(2), default=256, help="Of each problem.")
@click.option("--components", type=click.IntRange(1), default=1, help="Gaussians of the prior.")
@click.option("--side", type=click.IntRange(8), default=8, help="Of the images, in pixels.")
@click.option("--depth", type=click.IntRange(1), default=4, help="Blocks of the networks.")
@click.option("--steps", type=click.IntRange(2), default=20, help="Of the sampler `dpm`.")
@click.option("--eta", type=click.FloatRange(0), default=0.0, help="Its noise: 1 is the SDE.")
@click.option("--way", "ways", type=click.Choice(list(WAYS)), multiple=True, help="Only these.")
def main(
    images: int, problems: int, samples: int, components: int, side: int, depth: int,
    steps: int, eta: float, ways: Sequence[str],
) -> Any:  # fmt: skip
    """Train four networks on samples of a known prior, and compare them with exact posteriors."""
    crops = load_images(Photos(side, "train", size=CROPS), CROPS)
    prior = fit_gaussian(crops) if components == 1 else fit_mixture(crops, components)
    sampler = DPM(num_steps=steps, eta=eta)
    rows = measure(prior, images, problems, samples, ways or list(WAYS), depth, sampler)
    keys = ("sliced_wasserstein", "mean", "covariance", "mmse")
    text = "\n\n".join(f"{key}\n{distances_table(rows, key)}" for key in keys)
    record = {
        "side": side, "noise_level": NOISE, "crops": CROPS, "components": components,
        "images": images, "depth": depth, "problems": problems, "samples": samples,
        "steps": steps, "eta": eta, "rows": rows,
    }  # fmt: skip
    return text, record, lambda name: save_picture(name, draw(rows, "sliced_wasserstein"))


if __name__ == "__main__":
    main()
