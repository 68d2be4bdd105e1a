"""Tiles: they cover the image, agree where they overlap, and one tile is the network itself."""

import pytest
import torch
from helpers import assert_near, gaussian

from degradation import (
    DenseMatrix,
    Draws,
    GaussianNoise,
    Mask,
    NullOperator,
    Problem,
    StridedConvolution,
    ValidConvolution,
)
from networks import Denoiser, make_config
from samplers import CountingDenoiser, Heun, Tiled, Tiling, tile_problems

SIDE = (3, 8, 8)
SIZES = [((8, 8), 1), ((12, 8), 1), ((16, 24), 4), ((17, 11), 1), ((20, 26), 2), ((40, 8), 8)]


def network(preset: str = "tiny", **options: object) -> Denoiser:
    """An untrained network whose output depends on its input all the same."""
    torch.manual_seed(1)
    denoiser = Denoiser(make_config(preset, **options)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in denoiser.net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return denoiser


@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_tiles_cover_the_image_and_end_with_its_border(size: tuple[int, int], stride: int) -> None:
    tiling = Tiling(size, (8, 8), stride)
    seen = torch.zeros(size)
    for top in tiling.tops:
        for left in tiling.lefts:
            assert top % stride == 0 and left % stride == 0
            seen[top : top + 8, left : left + 8] += 1
    assert seen.min() == 1 or len(tiling) > 1
    assert seen.min() > 0
    assert tiling.tops[0] == 0 and tiling.tops[-1] + 8 == size[0]
    assert tiling.lefts[0] == 0 and tiling.lefts[-1] + 8 == size[1]
    gaps = torch.tensor(tiling.tops).diff()
    assert (gaps <= max(stride, 4)).all() and (gaps > 0).all()


@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_blending_is_a_partition_of_unity(size: tuple[int, int], stride: int) -> None:
    tiling = Tiling(size, (8, 8), stride)
    x = gaussian(3, 2, *size)
    assert_near(tiling.blend(tiling.cut(x)), x, 1e-6)
    assert (tiling.window() > 0).all()
    ones = torch.ones(len(tiling), 1, 8, 8)
    assert_near(tiling.blend(ones), torch.ones(1, 1, *size), 1e-6)


def test_a_tile_fades_out_before_another_begins() -> None:
    tiling = Tiling((8, 12), (8, 8))
    first = torch.stack((torch.ones(1, 8, 8), torch.zeros(1, 8, 8)))
    row = tiling.blend(first)[0, 0, 0]
    assert torch.equal(row[:4], torch.ones(4)) and torch.equal(row[8:], torch.zeros(4))
    assert (row[4:8].diff() < 0).all()
    assert 0 < row[7] < 0.1 and 0.9 < row[4] < 1


def test_cut_at_a_stride_gives_the_tiles_of_the_coarse_picture() -> None:
    tiling = Tiling((16, 24), (8, 8), 4)
    x = gaussian(2, 3, 16, 24)
    assert torch.equal(tiling.cut(x[..., ::4, ::4], 4), tiling.cut(x)[..., ::4, ::4])


@pytest.mark.parametrize(
    ("size", "stride", "sentence"),
    [((7, 8), 1, "hold no tile"), ((8, 7), 1, "hold no tile"), ((10, 9), 2, "must divide"),
     ((12, 12), 3, "must divide")],
)  # fmt: skip
def test_refusals(size: tuple[int, int], stride: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Tiling(size, (8, 8), stride)


def posed(
    kind: str, size: tuple[int, int]
) -> tuple[torch.Tensor, Problem, ValidConvolution | None]:
    """Two images of a size, their noisy problem, and the operator of a tile."""
    shape, draws = (3, *size), Draws([1, 2])
    x = gaussian(2, *shape, dtype=torch.float32) / 2
    kernel = gaussian(1, 3, 4, seed=3, dtype=torch.float32)
    blur = None
    if kind == "mask":
        operator = Mask((gaussian(2, 1, *size, seed=4) > 0).float(), shape)
    elif kind == "null":
        operator = NullOperator(2, shape)
    else:
        operator = StridedConvolution(kernel, 2, shape, tol=0).expand(2)
        blur = ValidConvolution(kernel, 2, SIDE)
    labels = torch.tensor([3, 5])
    return x, GaussianNoise(0.1).measure(operator, x, draws, labels), blur


@pytest.mark.parametrize("kind", ["mask", "null", "blur"])
def test_the_problem_of_a_tile_is_true_of_its_pixels(kind: str) -> None:
    size = (16, 14)
    tiling = Tiling(size, (8, 8), 2)
    x, problem, blur = posed(kind, size)
    clean = Problem(problem.degradation, problem.degradation.H(x), 0.1, problem.class_labels)
    local = tile_problems(clean, tiling, blur)
    assert len(local) == 2 * len(tiling) == len(local.degradation)
    assert local.degradation.image_shape == SIDE
    rows = local.degradation.rows
    assert_near(local.degradation.H(tiling.cut(x)) * rows, local.y * rows, 1e-5)
    assert local.class_labels is not None
    assert local.class_labels.tolist() == [3] * len(tiling) + [5] * len(tiling)
    assert torch.equal(local.levels, torch.full((2 * len(tiling),), 0.1))
    noisy = tile_problems(problem, tiling, blur)
    assert kind == "null" or not torch.equal(noisy.y, local.y)


def test_together_the_tiles_use_every_sample_that_fits_one() -> None:
    """Kernels of half a tile, as the families draw them: no sample falls between two tiles."""
    size, kernel = (16, 24), torch.ones(1, 4, 4)
    tiling = Tiling(size, (8, 8), 2)
    blur = ValidConvolution(kernel, 2, SIDE)
    used = torch.zeros(3, 8, 12)
    rows = blur.measurement_image(blur.rows)[0]
    for top in tiling.tops:
        for left in tiling.lefts:
            used[:, top // 2 : top // 2 + 4, left // 2 : left // 2 + 4] += rows
    whole = ValidConvolution(kernel, 2, (3, *size))
    assert torch.equal(used > 0, whole.measurement_image(whole.rows)[0])


def test_a_matrix_has_no_tiles() -> None:
    operator = DenseMatrix(gaussian(1, 4, 3 * 16 * 16, dtype=torch.float32), (3, 16, 16))
    problem = Problem(operator, torch.zeros(1, 4))
    with pytest.raises(ValueError, match="DenseMatrix"):
        tile_problems(problem, Tiling((16, 16), (8, 8)))


@pytest.mark.parametrize("batch", [2, 5])
def test_one_tile_is_the_network_bit_for_bit(batch: int) -> None:
    denoiser = network()
    shape = denoiser.config.image_shape
    operator = Mask((gaussian(2, 1, *shape[1:]) > 0).float(), shape)
    x = gaussian(2, *shape, dtype=torch.float32)
    problem = GaussianNoise(0.1).measure(operator, x, Draws([1, 2]))
    counter = CountingDenoiser(denoiser)
    tiled = Tiled(counter, Tiling(shape[1:], shape[1:]), batch, project=True)
    with torch.no_grad():
        for sigma in (100.0, 1.5, 0.01, torch.tensor([0.3, 4.0])):
            noisy = x + torch.as_tensor(sigma).view(-1, 1, 1, 1) * gaussian(*x.shape).float()
            expected = denoiser(noisy, sigma, problem)
            assert torch.equal(tiled(noisy, sigma, problem), expected)
            assert not torch.equal(expected, x)
    assert counter.calls == 4
    (local,) = tiled.prepare(problem).prepared.problems
    assert local.degradation is operator and local.y is problem.y


def test_batches_of_tiles_do_not_change_the_result() -> None:
    denoiser = network()
    shape = (3, 24, 32)
    operator = Mask((gaussian(2, 1, *shape[1:]) > 0).float(), shape)
    x = gaussian(2, *shape, dtype=torch.float32)
    problem = GaussianNoise(0.1).measure(operator, x, Draws([1, 2]))
    tiling = Tiling(shape[1:], denoiser.config.image_shape[1:])
    assert len(tiling) == 6
    with torch.no_grad():
        counters = CountingDenoiser(denoiser), CountingDenoiser(denoiser)
        whole, parts = (Tiled(c, tiling, n) for c, n in zip(counters, (12, 5), strict=True))
        sigma = torch.tensor([0.5, 3.0])  # of the images, not of the tiles
        assert_near(parts(x, sigma, problem), whole(x, sigma, problem), 1e-5)
        alone = Tiled(denoiser, tiling, 12)(x[1:], 3.0, problem[1:])
        assert_near(alone, whole(x, sigma, problem)[1:], 1e-5)
    assert [counter.calls for counter in counters] == [2, 3]
    once = parts.prepare(problem)
    assert parts.prepare(once) is once  # cut up once for a run


def test_the_estimate_of_tiles_is_the_estimate_of_the_whole_where_pixels_do_not_interact() -> None:
    """For a denoiser that acts on each pixel by itself a tiling must be invisible."""

    def shrink(x, sigma, problem):
        return x / (1 + torch.as_tensor(sigma).view(-1, 1, 1, 1) ** 2) + problem.pinv()

    size = (20, 26)
    tiling = Tiling(size, (8, 8))
    operator = Mask((gaussian(2, 1, *size, seed=4) > 0).float(), (3, *size))
    x = gaussian(2, 3, *size, dtype=torch.float32)
    problem = Problem(operator, operator.H(x))
    draws = Draws([1, 2])
    noise = draws.normal((3, *size), "latent")
    counter = CountingDenoiser(Tiled(shrink, tiling, 7))
    sampler = Heun(num_steps=4, churn=1.0)
    tiled = sampler(counter, noise, problem, Draws([1, 2]))
    assert_near(tiled, sampler(shrink, noise, problem, Draws([1, 2])), 1e-5)
    assert counter.calls == 7


@pytest.mark.parametrize("kind", ["mask", "blur"])
def test_a_projected_estimate_explains_the_whole_measurement(kind: str) -> None:
    size = (16, 14)
    x, problem, blur = posed(kind, size)
    problem = Problem(problem.degradation, problem.degradation.H(x))
    tiling = Tiling(size, (8, 8), 2)

    def grey(x, sigma, problem):
        return problem.project(torch.zeros_like(x))

    blended = Tiled(grey, tiling, 64, blur)(x, 1.0, problem)
    projected = Tiled(grey, tiling, 64, blur, project=True)(x, 1.0, problem)
    assert problem.residual(projected).abs().max() < 1e-4
    if kind == "blur":
        assert problem.residual(blended).abs().max() > 0.1
    assert (projected - x).norm() <= (blended - x).norm() * (1 + 1e-6)


def test_tiles_without_a_visible_pixel() -> None:
    """The estimate of a tile of which nothing was measured is finite."""
    denoiser = network("small32")
    shape = (3, 64, 64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :20, :20] = 1
    x = gaussian(1, *shape, dtype=torch.float32).clamp(-1, 1)
    operator = Mask(mask, shape)
    tiling = Tiling((64, 64), (32, 32))
    for level in (0.0, 0.1):
        problem = Problem(operator, operator.H(x), level)
        local = tile_problems(problem, tiling)
        assert not local.degradation.rows[-1].any()
        with torch.no_grad():
            estimate = Tiled(denoiser, tiling, 4)(100 * torch.randn(1, *shape), 100.0, problem)
        assert estimate.isfinite().all()
        assert estimate.abs().max() < 5
