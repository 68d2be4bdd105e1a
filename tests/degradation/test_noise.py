"""Photon noise: its distribution, its seeds, its level, and which operators it is for."""

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers import gaussian
from plain_physics import Rows
from runner import Runner
from scipy import stats
from torch import Tensor

from calculate_metrics import main
from datautils.photos import Photos
from degradation import (
    Box,
    DenseMatrix,
    DrawnNoise,
    Draws,
    FromPhysics,
    GaussianNoise,
    LinearOperator,
    Mask,
    MatrixDegradation,
    MotionBlur,
    NoDegradation,
    NullOperator,
    PhysicsFamily,
    PoissonNoise,
    RandomDegradation,
    SRConv,
    StridedConvolution,
    ValidConvolution,
    ValidRegion,
    check_noise,
    make_noise,
)
from degradation.noise import poisson_quantile
from metrics.evaluate import restorations
from networks import Denoiser, make_config, save_weights
from training.config import TrainConfig
from training.loop import Trainer

CPU = torch.device("cpu")
SHAPE = (3, 64, 64)
PEAKS = [1.0, 10.0, 1000.0]


def everything(batch: int = 1) -> Mask:
    return Mask(torch.ones(batch, 1, *SHAPE[1:]), SHAPE)


def grey(value: float, batch: int = 1) -> Tensor:
    return torch.full((batch, *SHAPE), value)


def photons(y: Tensor, peak: float) -> Tensor:
    return peak * (y.double() + 1) / 2


# ---- the distribution


@pytest.mark.parametrize("mean", [1e-3, 0.3, 1.0, 10.0, 1e3, 1e5, 1e7])
def test_quantiles_are_exact(mean: float) -> None:
    draws = Draws([1])
    uniform = draws.uniform((5_000,), "u")[0].double()
    uniform[:2] = torch.tensor([2.0**-46, 1 - 2.0**-40], dtype=torch.float64)
    means = mean * (0.1 + draws.uniform((5_000,), "mean")[0].double())
    expected = torch.from_numpy(stats.poisson.ppf(uniform.numpy(), means.numpy()))
    assert torch.equal(poisson_quantile(uniform, means), expected)
    assert (poisson_quantile(uniform, torch.zeros_like(means)) == 0).all()
    assert len(poisson_quantile(uniform[:0], means[:0])) == 0


@pytest.mark.parametrize("peak", PEAKS)
@pytest.mark.parametrize("value", [-0.9, 0.0, 1.0])
def test_moments_and_distribution(peak: float, value: float) -> None:
    problem = PoissonNoise(peak).measure(everything(), grey(value), Draws([3]))
    n, mean = SHAPE[0] * SHAPE[1] * SHAPE[2], peak * (value + 1) / 2
    y = problem.y.double()
    assert abs(y.mean() - value) < 5 * (2 * (value + 1) / peak / n) ** 0.5
    variance = 2 * (value + 1) / peak
    spread = variance * ((2 + 1 / mean) / n) ** 0.5
    assert abs(y.var() - variance) < 5 * spread
    counts = photons(y[0], peak)
    assert (counts - counts.round()).abs().max() < 1e-3 * max(1, mean / 1000)
    # Pearson's chi-square over the values that are expected at least 20 times.
    values = torch.arange(0, int(mean + 12 * mean**0.5 + 12))
    expected = n * stats.poisson.pmf(values.numpy(), mean)
    often = expected >= 20
    observed = torch.bincount(counts.round().long(), minlength=len(values)).numpy()
    seen, awaited = observed[: len(values)][often], expected[often]
    seen, awaited = [*seen, n - seen.sum()], [*awaited, n - awaited.sum()]
    statistic = sum((a - b) ** 2 / max(b, 1) for a, b in zip(seen, awaited, strict=True))
    assert statistic < stats.chi2.ppf(0.9999, len(seen))


def test_many_photons_are_normal() -> None:
    y = PoissonNoise(1e6).measure(everything(), grey(0.5), Draws([3])).y.double()
    standard = (y - 0.5) / (3 / 1e6) ** 0.5
    assert stats.kstest(standard.flatten().numpy(), "norm").pvalue > 1e-3


# ---- seeds and rows


def test_an_image_has_its_own_numbers_in_any_batch() -> None:
    x = gaussian(3, *SHAPE, dtype=torch.float32).clamp(-1, 1)
    mask = (gaussian(3, 1, *SHAPE[1:], seed=1) > 0).float()
    noise = PoissonNoise(20.0)
    together = noise.measure(Mask(mask, SHAPE), x, Draws([5, 6, 7]))
    for i in range(3):
        alone = noise.measure(Mask(mask[[i]], SHAPE), x[[i]], Draws([5 + i]))
        assert torch.equal(alone.y, together.y[[i]])
        torch.testing.assert_close(alone.levels, together.levels[[i]])
    # What is hidden changes no number of what is seen.
    full = noise.measure(everything(3), x, Draws([5, 6, 7]))
    seen = mask.expand(-1, 3, -1, -1).flatten(1) > 0
    assert torch.equal(together.y[seen], full.y[seen])
    assert not together.y[~seen].any()
    assert not torch.equal(together.y[0], together.y[1])


def test_no_photon_falls_where_it_is_black() -> None:
    problem = PoissonNoise(10.0).measure(everything(), grey(-1.0), Draws([0]))
    assert (problem.y == -1).all()
    assert problem.levels.item() > 0  # one photon in all


# ---- its level


@pytest.mark.parametrize("peak", PEAKS)
def test_the_level_is_the_error_of_the_measurement(peak: float) -> None:
    x = (torch.linspace(-1, 1, 64)[:, None] * torch.linspace(0.2, 1, 64)).expand(2, *SHAPE)
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, :20] = 1  # the dark part
    mask[1] = 1
    op = Mask(mask, SHAPE)
    problem = PoissonNoise(peak).measure(op, x, Draws([1, 2]))
    for i, rows in enumerate(op.rows):
        clean = op.H(x)[i, rows].double()
        theory = (2 * (clean + 1) / peak).mean().sqrt()
        actual = (problem.y[i, rows] - clean).square().mean().sqrt()
        assert abs(problem.levels[i] / theory - 1) < 0.06
        assert abs(actual / theory - 1) < 0.06
    again = PoissonNoise(peak).level_of(op, problem.y)
    assert torch.equal(again, problem.levels)


def test_nothing_measured_has_no_noise() -> None:
    problem = PoissonNoise(5.0).measure(NullOperator(2, SHAPE), grey(0.0, 2), Draws([1, 2]))
    assert not problem.y.any() and not problem.levels.any()


def test_the_level_of_gaussian_noise() -> None:
    level = GaussianNoise(0.3).level_of(everything(2), torch.zeros(2, 4))
    assert torch.equal(level, torch.tensor([0.3, 0.3]))
    make_noise(0.3).check(DenseMatrix(gaussian(1, 3, 48).float(), (3, 4, 4)))


# ---- which operators


SMALL = (3, 8, 8)
UNIFORM = torch.full((1, 2, 2), 0.25)
EDGE, DOUBLE = torch.tensor([[[-0.5, 1.5]]]), torch.ones(1, 1, 2)


@pytest.mark.parametrize("form", [StridedConvolution, ValidConvolution, ValidRegion])
def test_blur_with_weights_of_a_mean(form: type) -> None:
    noise = PoissonNoise(100.0)
    noise.check(form(UNIFORM, 2, SMALL))
    for wrong in (EDGE, DOUBLE):
        with pytest.raises(ValueError, match=rf"intensities, and {form.__name__} here"):
            noise.check(form(wrong, 1, SMALL))


def test_the_check_is_in_the_precision_of_the_operator() -> None:
    class Strict(DenseMatrix):
        def H(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float64
            return super().H(x)

        def H_adjoint(self, y: Tensor) -> Tensor:
            assert y.dtype == torch.float64
            return super().H_adjoint(y)

    PoissonNoise(100.0).check(Strict(torch.full((1, 1, 192), 1 / 192).double(), SMALL))


def test_measuring_relies_on_the_check_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PoissonNoise, "check", lambda *_: pytest.fail("checked again"))
        PoissonNoise(9.0).measure(StridedConvolution(UNIFORM, 2, SMALL), grey(0.0)[..., :8, :8],
                                  Draws([0]))  # fmt: skip
    stripes = torch.ones(SMALL)
    stripes[..., ::2] = -1
    for wrong, x in ((EDGE, stripes), (DOUBLE, torch.ones(SMALL)), (DOUBLE, -torch.ones(SMALL))):
        op = StridedConvolution(wrong, 1, SMALL, tol=0.0)
        with pytest.raises(ValueError, match="must be in"):
            PoissonNoise(1.0).measure(op, x[None], Draws([0]))


def test_truncation_leaves_intensities_below_black_that_become_black() -> None:
    x = grey(-1.0)
    x[..., 24:40, 24:40] = 1
    op = MotionBlur().sample(SHAPE, 2, [1])
    v, peak = op.H(x), 1e4
    below = -1 - v[op.rows]
    assert (below > 1e-6).float().mean() > 0.2 and 1e-4 < below.max() < 0.01
    y = PoissonNoise(peak).measure(op, x, Draws([0])).y
    assert (y[op.rows][below > 0] == -1).all()


@pytest.mark.parametrize(
    "operator",
    [
        DenseMatrix(gaussian(2, 5, 192, dtype=torch.float32), SMALL),
        SRConv().sample(SMALL, 2, [1]),
    ],
)
def test_other_operators_are_refused(operator: LinearOperator) -> None:
    with pytest.raises(ValueError, match="use masks, or blur with weights that are not negative"):
        PoissonNoise(1.0).check(operator)


@pytest.mark.parametrize("size", [32, 64])
def test_the_blur_of_training_is_accepted(size: int) -> None:
    for structure in MotionBlur().structures():
        PoissonNoise(1.0).check(MotionBlur().sample((3, size, size), structure, range(8)))


def test_any_other_physics_is_held_to_the_same() -> None:
    class Means:
        scale = 1.0

        def A(self, x: Tensor) -> Tensor:
            return self.scale * torch.nn.functional.avg_pool2d(x, 2)

        def A_adjoint(self, y: Tensor) -> Tensor:
            return self.scale / 4 * y.repeat_interleave(2, -1).repeat_interleave(2, -2)

    physics = Means()
    PoissonNoise(1.0).check(FromPhysics(physics, SMALL))
    physics.scale = 2.0
    with pytest.raises(ValueError, match="FromPhysics here gives others"):
        PoissonNoise(1.0).check(FromPhysics(physics, SMALL))


def test_one_of_a_list_is_held_to_it_too() -> None:
    def means(scale: float) -> Rows:
        return Rows(torch.full((2, 192), scale / 192), SMALL)

    check_noise(PoissonNoise(1.0), PhysicsFamily([means(1.0), means(1.0)]), SMALL)
    for scales in ((1.0, 2.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="FromPhysics here gives others"):
            check_noise(PoissonNoise(1.0), PhysicsFamily([means(s) for s in scales]), SMALL)


def test_families_are_checked_before_anything_runs() -> None:
    check_noise(PoissonNoise(1.0), Box(), SMALL)
    check_noise(GaussianNoise(1.0), MatrixDegradation(), SMALL)
    mixture = RandomDegradation(members=(Box(), NoDegradation()))
    check_noise(PoissonNoise(1.0), mixture, SMALL)
    with pytest.raises(ValueError, match="DenseMatrix"):
        check_noise(PoissonNoise(1.0), RandomDegradation(), SMALL)


@pytest.mark.parametrize("peak", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_peaks_are_refused(peak: float) -> None:
    with pytest.raises(ValueError, match="photons above 0"):
        PoissonNoise(peak)


def test_one_kind_of_noise() -> None:
    assert make_noise(0.0, 10.0) == PoissonNoise(10.0)
    assert make_noise(0.1) == GaussianNoise(0.1)
    with pytest.raises(ValueError, match=r"12\.75 is above the range .* 255, give 0\.1"):
        make_noise(12.75)
    with pytest.raises(ValueError, match=r"12\.75 is above the range"):
        DrawnNoise(0.1, 12.75)
    for build in (
        lambda: make_noise(0.1, 10.0),
        lambda: TrainConfig(noise_level=0.1, poisson_peak=10.0),
    ):
        with pytest.raises(ValueError, match="two kinds of noise"):
            build()
    with pytest.raises(ValueError, match="poisson_peak"):
        TrainConfig(poisson_peak=0.0)


# ---- in use


def test_training_and_evaluation() -> None:
    config = TrainConfig(preset="tiny", precision="fp32", batch=2, ramp=0, poisson_peak=20.0)
    trainer = Trainer(config, Denoiser(make_config("tiny")), MotionBlur(strides=(2,)), CPU)
    assert trainer.noise == PoissonNoise(20.0)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert trainer.step(images, torch.full((2,), -1), 0.0).isfinite()
    stream = restorations(
        Photos(16, "heldout", size=3), {"Box": Box()},
        {"pinv": lambda problem, noise, draws: problem.pinv()},
        noise=PoissonNoise(20.0), indices=range(3), batch=2, seed=0, device=CPU,
    )  # fmt: skip
    for restored in stream:
        problem = restored.problem
        counts = photons(problem.y[problem.degradation.rows], 20.0)
        assert (counts - counts.round()).abs().max() < 1e-4
        assert (problem.levels > 0.05).all()


def run_gen(folder: Path, *arguments: str) -> tuple[int, str]:
    net = folder / "net.safetensors"
    save_weights(net, Denoiser(make_config("tiny")), {})
    words = [
        "gen", "--net", str(net), "--data-opt", "resolution=16", "--data-opt", "size=4",
        "--sampler-opt", "num_steps=2", "--sampler", "heun", "--workers", "0",
        "--outdir", str(folder / "out"), *arguments,
    ]  # fmt: skip
    result = Runner().invoke(main, words)
    return result.exit_code, f"{result.output} {result.exception!r}"


def test_gen(tmp_path: Path) -> None:
    code, output = run_gen(
        tmp_path, "--poisson-peak", "50", "--degradation", "degradation.MotionBlur"
    )
    assert code == 0, output
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["settings"]["poisson_peak"] == 50
    with (tmp_path / "out/per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    # y − H H†y of photon noise: nowhere near exact.
    assert all(float(r["consistency"]) > 1e-5 for r in rows if r["method"] == "H†y")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--degradation", "degradation.MatrixDegradation"], "Poisson noise needs measurements"),
        (["--degradation", "degradation.Box", "--noise-level", "0.1"], "two kinds of noise"),
        (["--degradation", "degradation.Box", "--metrics", "cfd"], "defined without noise only"),
    ],
)
def test_gen_refuses(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    code, output = run_gen(tmp_path, "--poisson-peak", "50", *arguments)
    assert code == 2 and sentence in output and not (tmp_path / "out").exists()
