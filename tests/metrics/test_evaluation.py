"""Evaluation: what an image's result depends on, and the baselines."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import dense, dense_pinv, gaussian
from torch import Tensor

from datautils.photos import Photos
from degradation import (
    DenseMatrix,
    Draws,
    Family,
    GaussianNoise,
    LinearOperator,
    Mask,
    MatrixDegradation,
    MissingPatches,
    MotionBlur,
    Problem,
    RandomDegradation,
    StridedConvolution,
    derive_seed,
)
from metrics import baselines
from metrics.evaluate import group_by_structure, restorations
from metrics.measure import Measure
from metrics.pixel import consistency, psnr, ssim, to_float, to_uint8
from metrics.results import PartialRecords, read_rows, write_merged
from networks import Denoiser, fit_gaussian, make_config, posterior_mean
from samplers import make_sampler

CPU = torch.device("cpu")
FAMILIES = {
    "MotionBlur": MotionBlur(),
    "MissingPatches": MissingPatches(),
    "MatrixDegradation": MatrixDegradation(),
}
COLUMNS = ["psnr", "ssim", "consistency"]


def photos(size: int = 8, split: str = "heldout", resolution: int = 16) -> Photos:
    return Photos(resolution, split, size=size)


def pixels(dataset: Photos) -> Tensor:
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


# ---- what a result depends on --------------------------------------------------------------------


def network() -> Denoiser:
    """A network all of whose weights take part."""
    torch.manual_seed(0)
    denoiser = Denoiser(make_config("tiny")).eval()
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.03 * torch.randn(p.shape))
    return denoiser


def all_methods() -> dict:
    """H†y; one that shows its latent and its draws; a sampler with a network."""
    denoiser, sampler = network(), make_sampler("heun", {"num_steps": "3", "churn": "1"})

    def noisy(problem: Problem, noise: Tensor, draws: Draws) -> Tensor:
        return problem.project(0.1 * noise + 0.1 * draws.randn_like(noise))

    def sample(problem: Problem, noise: Tensor, draws: Draws) -> Tensor:
        return sampler(denoiser, noise, problem, draws)

    return {"pinv": lambda problem, noise, draws: problem.pinv(), "noisy": noisy, "net": sample}


@dataclass
class Found:
    """What came of an evaluation: rows, pictures, seconds of restoring."""

    rows: list[dict]
    pictures: dict
    seconds: dict


def collect(dataset, families, methods, *, metrics, pictures=0, **options) -> Found:
    """Everything that an evaluation streams, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "0.csv"
        with PartialRecords(part, metrics) as records:
            measure = Measure(records, metrics, {}, CPU, pictures)
            for restored in restorations(dataset, families, methods, device=CPU, **options):
                measure(restored)
        write_merged(Path(folder) / "per_image.csv", [part], list(families), metrics)
        rows = list(read_rows(Path(folder) / "per_image.csv", metrics))
    seconds = {key: costs["seconds"] for key, costs in measure.share.costs.items()}
    return Found(rows, measure.share.pictures, seconds)


def run(methods: dict | None = None, **options: object) -> Found:
    plain: dict = {
        "noise": GaussianNoise(0.05), "metrics": COLUMNS, "indices": range(8), "batch": 8,
        "seed": 0,
    }  # fmt: skip
    return collect(photos(), FAMILIES, methods or all_methods(), **plain | options)


@pytest.fixture(scope="module")
def whole() -> Found:
    """All images in the largest batches, with pictures of the first two."""
    return run(pictures=2)


def by_image(results: Found) -> dict[tuple, dict]:
    keyed = {(row["degradation"], row["image"], row["method"]): row for row in results.rows}
    assert len(keyed) == len(results.rows)
    return keyed


@pytest.mark.parametrize(
    "options",
    [{"batch": 3}, {"indices": [5]}, {"indices": [1, 2, 6]}, {"workers": 1}],
    ids=str,
)
def test_results_of_an_image_do_not_depend_on_its_company(whole, options):
    expected, found = by_image(whole), by_image(run(**options))
    indices = options.get("indices", range(8))
    assert len(found) == len(FAMILIES) * 3 * len(indices)
    for key, row in found.items():
        assert row["structure"] == expected[key]["structure"]
        tight = key[2] != "net"  # there, matrix products of few rows are rounded differently
        for metric, tolerance in zip(COLUMNS, (1e-3, 5e-6, 0), strict=True):
            assert row[metric] == pytest.approx(
                expected[key][metric], rel=1e-6 if tight else 5e-6, abs=0 if tight else tolerance
            ), (key, metric)


def test_chunks_of_a_plan_change_nothing(whole, monkeypatch):
    monkeypatch.setattr("metrics.evaluate._CHUNK", 3)
    pinv = {"pinv": all_methods()["pinv"]}
    found = run(pinv)
    assert [row["image"] for row in found.rows] == list(range(8)) * 3
    for key, row in by_image(found).items():
        assert row["psnr"] == pytest.approx(by_image(whole)[key]["psnr"], rel=1e-6)


def test_restorations_come_one_by_one():
    seen = []

    class Watched(Photos):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    stream = restorations(
        Watched(16, "heldout", size=8), {"patches": MissingPatches()},
        {"pinv": lambda problem, noise, draws: problem.pinv()},
        noise=GaussianNoise(), indices=range(8), batch=4, seed=0, device=CPU,
    )  # fmt: skip
    assert not seen
    first = next(stream)
    assert first.group.indices == [0, 1, 2, 3] and seen == [0, 1, 2, 3]


def test_results_of_a_method_do_not_depend_on_the_others(whole):
    expected = by_image(whole)
    for method in ("noisy", "net"):
        found = by_image(run({method: all_methods()[method]}))
        assert found and all(row == expected[key] for key, row in found.items())


def test_the_seed_changes_every_result(whole):
    other = by_image(run(seed=1))
    same = [k for k, row in by_image(whole).items() if row["psnr"] == other[k]["psnr"]]
    assert not same


def test_every_image_is_restored_under_an_operator_of_its_own(whole):
    values = [row["psnr"] for row in whole.rows if row["method"] == "pinv"]
    assert len(set(values)) == len(values)


def test_rows_hold_the_metrics_of_the_restoration_they_name():
    dataset, family, seed = photos(), MissingPatches(), derive_seed(3, "image", 4)
    results = collect(
        dataset, {"patches": family}, {"half": lambda problem, noise, draws: 0.5 * noise},
        noise=GaussianNoise(0.1), metrics=COLUMNS, indices=[4], batch=2, seed=3,
    )  # fmt: skip
    truth = dataset[4][0][None]
    operator = family.sample((3, 16, 16), None, [seed])
    problem = GaussianNoise(0.1).measure(operator, to_float(truth), Draws([seed]))
    x = 0.5 * Draws([seed]).normal((3, 16, 16), "latent")
    (row,) = results.rows
    assert row == {
        "degradation": "patches", "image": 4, "structure": "None", "method": "half",
        "psnr": psnr(to_uint8(x), truth).item(), "ssim": ssim(to_uint8(x), truth).item(),
        "consistency": consistency(operator, x, problem.y).item(),
    }  # fmt: skip


def test_pictures_are_those_of_the_first_images(whole):
    assert set(whole.pictures) == {(name, i) for name in FAMILIES for i in (0, 1)}
    for (name, index), shown in whole.pictures.items():
        assert torch.equal(shown["original"], photos()[index][0])
        assert ("measurement" in shown) == (name != "MatrixDegradation")
        values = by_image(whole)
        for method in ("pinv", "noisy", "net"):
            quality = psnr(shown[method][None], shown["original"][None]).item()
            assert quality == values[name, index, method]["psnr"]


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("family", [MotionBlur(), RandomDegradation(), MissingPatches()])
def test_groups_share_a_structure_and_take_every_image_once(family, batch):
    seeds = {index: derive_seed("groups", index) for index in range(3, 40)}
    groups = list(group_by_structure(family, seeds, batch))
    assert sorted(index for _, indices in groups for index in indices) == list(seeds)
    for structure, indices in groups:
        assert 1 <= len(indices) <= batch and indices == sorted(indices)
        assert {family.structure(seeds[index]) for index in indices} == {structure}
    structures = {family.structure(seed) for seed in seeds.values()}
    if batch == 100:
        assert len(groups) == len(structures)


# ---- operators to try estimates on ---------------------------------------------------------------


SHAPE = (3, 8, 4)  # neither square nor grey


def operators(dtype: torch.dtype = torch.float64) -> dict[str, LinearOperator]:
    """Two images each."""
    mask = (gaussian(2, 1, 8, 4, seed=3) > 0.3).to(dtype)
    matrix = gaussian(2, 7, 96, seed=4, dtype=dtype) / 10
    matrix[1, 5:] = 0
    kernel = gaussian(2, 3, 3, seed=5, dtype=dtype).abs()
    return {
        "mask": Mask(mask, SHAPE),
        "matrix": DenseMatrix(matrix, SHAPE),
        "blur": StridedConvolution(kernel / kernel.sum((1, 2), keepdim=True), 2, SHAPE),
    }


KINDS = ["mask", "matrix", "blur"]


def measured(kind: str, level: float | Tensor = 0.0, dtype: torch.dtype = torch.float64) -> Problem:
    operator = operators(dtype)[kind]
    y = operator.H(0.5 * gaussian(2, *SHAPE, seed=6, dtype=dtype) + 0.2)
    return Problem(operator, y, level)


# ---- baselines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_pinv_is_the_pseudo_inverse_regularised_by_the_noise(kind, level):
    problem = measured(kind, level)
    inverse = dense_pinv(problem.degradation, level)
    expected = (inverse @ problem.y[..., None]).view(2, *SHAPE)
    torch.testing.assert_close(problem.pinv(), expected, rtol=1e-6, atol=1e-8)


def test_constant_fill_of_a_mask_is_the_mean_visible_colour_around_the_visible_pixels():
    truth = to_float(pixels(photos(4)))
    operator = MissingPatches().sample((3, 16, 16), None, range(4))
    filled = baselines.constant_fill(Problem(operator, operator.H(truth)))
    for i in range(4):
        seen = operator.mask[i, 0].bool()
        torch.testing.assert_close(filled[i][:, seen], truth[i][:, seen])
        colour = truth[i][:, seen].mean(1, keepdim=True).expand(-1, int((~seen).sum()))
        torch.testing.assert_close(filled[i][:, ~seen], colour)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_fill_is_the_colour_of_least_squares_projected(kind):
    problem = measured(kind)
    H, flat = dense(problem.degradation), torch.eye(3).double().repeat_interleave(32, dim=1).T
    colour = torch.linalg.pinv(H @ flat) @ problem.y[..., None]
    assert colour.abs().max() < 1
    expected = problem.project((flat @ colour).view(2, *SHAPE))
    torch.testing.assert_close(baselines.constant_fill(problem), expected, rtol=1e-5, atol=1e-7)


def test_constant_fill_of_an_unseen_colour_is_grey():
    mask = torch.zeros(1, 3, 8, 4)
    mask[:, :2, 0] = 1  # no blue pixel is seen
    operator = Mask(mask, SHAPE)
    filled = baselines.constant_fill(Problem(operator, operator.H(torch.full((1, *SHAPE), 0.5))))
    torch.testing.assert_close(filled[:, :2], torch.full((1, 2, 8, 4), 0.5))
    assert filled[:, 2].abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_fills_without_noise_explain_the_measurement(kind):
    problem = measured(kind)
    for fill in (Problem.pinv, baselines.constant_fill):
        torch.testing.assert_close(
            problem.degradation.H(fill(problem)), problem.y, rtol=1e-6, atol=1e-8
        )


Pairs = list[tuple[Problem, Tensor]]


def problems(family: Family, images: Tensor, level: float = 0.0) -> Pairs:
    """The problems of some images with the truth, one for each structure."""
    shape = tuple(images.shape[1:])
    seeds = {i: derive_seed("problems", i) for i in range(len(images))}
    found = []
    for structure, indices in group_by_structure(family, seeds, len(images)):
        chosen = [seeds[i] for i in indices]
        operator = family.sample(shape, structure, chosen)
        clean = to_float(images[indices])
        problem = GaussianNoise(level).measure(operator, clean, Draws(chosen))
        found.append((problem, images[indices]))
    return found


def mean_quality(estimate: Callable[[Problem], Tensor], pairs: Pairs) -> float:
    values = [psnr(to_uint8(estimate(problem)), truth) for problem, truth in pairs]
    return torch.cat(values).clamp(max=60).mean().item()  # a crop of one colour has no error


# ---- the Gaussian prior --------------------------------------------------------------------------


def test_a_gaussian_fitted_to_photos_restores_unseen_ones():
    prior = fit_gaussian(to_float(pixels(photos(2000, "train", 8))))
    pairs = problems(MatrixDegradation(2, 60), pixels(photos(64, "heldout", 8)))
    methods = partial(posterior_mean, prior), baselines.constant_fill, Problem.pinv
    gaussian_fit, colour, inverse = (mean_quality(method, pairs) for method in methods)
    assert gaussian_fit > colour + 2 > inverse + 4


def test_a_gaussian_can_be_fitted_to_fewer_images_than_values():
    images = to_float(pixels(photos(20, "train", 8)))
    prior = fit_gaussian(images)
    torch.testing.assert_close(prior.mean()[0], images.double().mean(0))
    eigenvalues = torch.linalg.eigvalsh(prior.covariance()[0])
    assert eigenvalues[0] > 5e-7 and eigenvalues[-1] > 1
    (pair,) = problems(MissingPatches(), pixels(photos(4, "heldout", 8)))
    assert posterior_mean(prior, pair[0]).isfinite().all()


def test_a_restoration_that_is_not_finite_shows_in_the_mean():
    broken = {
        "broken": lambda problem, noise, draws: noise.index_fill(0, torch.tensor(0), torch.nan)
    }
    results = collect(
        photos(4, "heldout", 8), {"MissingPatches": MissingPatches()}, broken,
        noise=GaussianNoise(), metrics=["consistency"], indices=range(4), batch=4, seed=0,
    )  # fmt: skip
    values = [row["consistency"] for row in results.rows]
    assert math.isnan(values[0]) and not any(math.isnan(value) for value in values[1:])
