"""Posing a photo: operators, noise and tiles that options give."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_files import CPU, SHAPE, load, run, save, scene
from runner import Runner

import restore
from commands import photo as photo_module
from commands.photo import Request, pose
from degradation import (
    Mask,
    RandomDegradation,
    StridedConvolution,
    ValidConvolution,
    ValidRegion,
    derive_seed,
)

# ---- posing the problem

pytestmark = pytest.mark.usefixtures("photo_folder")


def posed(**options: object) -> photo_module.Task:
    return pose(Request(Path("photo.png"), **options), SHAPE, CPU)  # type: ignore[arg-type]


def test_a_kernel_fits_a_tile_and_the_photo_a_stride() -> None:
    save("odd.png", scene(37, 45))
    task = pose(Request(Path("odd.png"), degradation="MotionBlur", seed=3), SHAPE, CPU)
    operator = task.problem.degradation
    assert isinstance(operator, StridedConvolution) and task.blur is not None
    stride = operator.stride
    size = (37 // stride * stride, 45 // stride * stride)
    assert operator.image_shape == (3, *size) and task.tiling.size == size
    assert f"cropped at the right and the bottom to {size[0]}×{size[1]}" in task.notes[0]
    assert task.truth is not None
    assert torch.equal(task.truth, load("odd.png")[:, : size[0], : size[1]])
    assert task.blur.image_shape == SHAPE and task.exact


@pytest.mark.parametrize("family", ["AveragePool", "UniformBlur"])
def test_every_blur_crops_the_photo_to_its_stride(family: str) -> None:
    save("odd.png", scene(37, 45))
    options = {"strides": "4"}
    request = Request(Path("odd.png"), degradation=family, degradation_opt=options)
    task = pose(request, SHAPE, CPU)
    assert task.tiling.size == (36, 44)
    assert "cropped at the right and the bottom to 36×44" in " ".join(task.notes)


def test_a_measured_kernel_is_scaled_to_the_sum_1() -> None:
    np.save("double.npy", 2 * np.load("kernel.npy"))
    options = {"stride": 2, "measured": True, "noise_level": 0.1}
    task = posed(kernel=Path("double.npy"), **options)
    plain = posed(kernel=Path("kernel.npy"), **options)
    x = torch.rand(1, *plain.problem.degradation.image_shape)
    torch.testing.assert_close(task.problem.degradation.H(x), plain.problem.degradation.H(x))
    assert "double.npy sums to 2: it is divided by that" in task.notes
    np.save("zero-sum.npy", np.array([[1.0, 1e-8 - 1.0]]))
    with pytest.raises(ValueError, match=r"zero-sum\.npy sums to .*: the kernel of a camera"):
        posed(kernel=Path("zero-sum.npy"), **options)


def test_samples_that_diverge_are_named(nets: dict[str, Path], monkeypatch) -> None:
    def diverging(self, denoiser, noise, problem, rng):
        return torch.full_like(noise, math.nan)

    monkeypatch.setattr("samplers.Heun.__call__", diverging)
    arguments = ["--image=photo.png", "--mask=mask.png", "--samples=2", "--sampler=heun"]
    found = Runner().invoke(restore.main, [f"--net={nets['plain']}", "--outdir=out", *arguments])
    assert found.exit_code == 1
    assert "sample-1 of Heun failed, its consistency is nan" in found.output
    pictures = json.loads(Path("out/restore.json").read_text())["metrics"]["pictures"]
    assert pictures["sample-1"]["psnr"] is None and pictures["mmse"]["psnr"] > 0


def test_a_mean_of_samples_that_diverged_has_no_psnr(nets: dict[str, Path], monkeypatch) -> None:
    def half(self, denoiser, noise, problem, rng):
        return torch.tensor([5.0, 0.0])[: len(noise), None, None, None].expand_as(noise)

    monkeypatch.setattr("zero_shot.DDRM.__call__", half)
    arguments = ["--image=photo.png", "--mask=mask.png", "--samples=2", "--sampler=ddrm"]
    both = "--batch=64"  # both samples at once
    words = [
        f"--net={nets['unconditional']}",
        "--noise-level=0.1",
        "--outdir=out",
        both,
        *arguments,
    ]
    assert Runner().invoke(restore.main, words).exit_code == 0
    pictures = json.loads(Path("out/restore.json").read_text())["metrics"]["pictures"]
    assert pictures["sample-1"]["psnr"] is pictures["mmse"]["psnr"] is None
    assert pictures["sample-2"]["psnr"] > 0


def test_a_mask_says_what_it_shows() -> None:
    assert any("pixels are visible" in note for note in posed(mask=Path("mask.png")).notes)
    save("white.png", np.full_like(scene(40, 56), 255))
    with pytest.raises(ValueError, match=r"white\.png hides nothing"):
        posed(mask=Path("white.png"))


def test_a_mixture_gives_what_its_members_give() -> None:
    """Members are as they are by themselves: kernels for the tiles, masks for the photo."""
    kinds = set()
    for seed in range(12):
        request = Request(Path("photo.png"), degradation="RandomDegradation", seed=seed)
        if RandomDegradation().structure(derive_seed(seed, "restore", "problem"))[0] == 2:
            with pytest.raises(ValueError, match="and MatrixDegradation draws neither"):
                pose(request, SHAPE, CPU)
            continue
        task = pose(request, SHAPE, CPU)
        assert (task.blur is not None) == isinstance(task.problem.degradation, StridedConvolution)
        kinds.add(type(task.problem.degradation).__name__)
    assert kinds == {"StridedConvolution", "Mask", "NullOperator"}


def test_the_operator_follows_from_the_seed() -> None:
    tasks = [posed(degradation="MissingPatches", seed=seed) for seed in (0, 0, 1)]
    first, again, other = (task.problem.degradation.rows for task in tasks)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_noise_is_added_to_a_clean_photo_only() -> None:
    clean = posed(mask=Path("mask.png"))
    noisy = posed(mask=Path("mask.png"), noise_level=0.5)
    measured = posed(mask=Path("mask.png"), noise_level=0.5, measured=True)
    visible = clean.problem.degradation.rows
    difference = (noisy.problem.y - clean.problem.y)[visible]
    assert abs(difference.std().item() - 0.5) < 0.02
    assert torch.equal(measured.problem.y, clean.problem.y)
    assert measured.problem.levels.item() == 0.5 and not measured.exact
    assert measured.truth is None and clean.truth is not None


def test_photon_noise_of_a_photo(nets: dict[str, Path]) -> None:
    record = run(nets["plain"], "--mask=mask.png", "--poisson-peak=40")
    assert record["settings"]["poisson_peak"] == 40
    clean = posed(mask=Path("mask.png")).problem
    noisy = posed(mask=Path("mask.png"), poisson_peak=40.0)
    counts = 20 * (noisy.problem.y[clean.degradation.rows] + 1)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
    error = (noisy.problem.y - clean.y)[clean.degradation.rows].square().mean().sqrt()
    assert abs(error / noisy.problem.levels.item() - 1) < 0.05 and not noisy.exact
    # Of a photo that was measured so, the level follows from what it shows.
    measured = posed(kernel=Path("kernel.npy"), stride=2, measured=True, poisson_peak=40.0)
    rows = measured.problem.degradation.rows
    expected = ((measured.problem.y[rows] + 1) / 20).mean().sqrt()
    torch.testing.assert_close(measured.problem.levels[0], expected)


def test_a_mask_is_cut_to_the_size_of_the_photo() -> None:
    task = posed(mask=Path("mask.png"), fit="resize")
    assert isinstance(task.problem.degradation, Mask) and len(task.tiling) == 1
    assert 0 < task.problem.degradation.mask.mean() < 1


def test_measured_blur_uses_the_form_that_its_size_allows() -> None:
    options = {"kernel": Path("kernel.npy"), "stride": 2, "measured": True, "noise_level": 0.1}
    large = posed(**options)
    assert isinstance(large.problem.degradation, ValidRegion) and not large.exact
    assert large.problem.degradation.image_shape == (3, 80, 112)
    save("photo.png", scene(8, 8))
    small = posed(**options)
    assert isinstance(small.problem.degradation, ValidConvolution) and not small.exact
    exact = posed(**options | {"noise_level": 0.0})
    assert exact.exact
