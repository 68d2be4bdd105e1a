"""Motion-blur kernels: validity, dependence on the seed alone, and the laws of the paths."""

import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch

from degradation import motion
from degradation.motion import draw_lines, motion_kernels, motion_paths
from degradation.randomness import Draws

SIZE = (32, 32)
DIAGONAL = 2 * math.hypot(*SIZE)
P_VALUE = 1e-3  # the seeds are fixed, so a pass stays a pass; a wrong law gives far below 1e-9


@pytest.fixture(scope="module")
def paths() -> motion.MotionPaths:
    return motion_paths(Draws(range(10_000)), SIZE)


def follows(sample, distribution) -> bool:
    return scipy.stats.kstest(np.asarray(sample), distribution).pvalue > P_VALUE


# Kernels


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (32, 32), (48, 20), (4, 256), (256, 256)])
@pytest.mark.parametrize("smooth", [0.0, 8.0])
def test_kernels_are_weights(size, smooth):
    kernels = motion_kernels(Draws(range(12)), size, smooth)
    assert kernels.shape == (12, *size)
    assert kernels.dtype == torch.float32
    assert kernels.isfinite().all()
    assert (kernels >= 0).all()
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(12), rtol=0, atol=1e-5)


def test_kernel_depends_on_its_seed_alone():
    # The batch holds paths of very different numbers of steps, the single ones do not.
    seeds = list(range(40))
    batch = motion_kernels(Draws(seeds), SIZE, 2)
    shuffled = motion_kernels(Draws(seeds[::-1]), SIZE, 2)
    torch.testing.assert_close(shuffled.flip(0), batch, rtol=1e-5, atol=1e-8)
    for seed in seeds[::8]:
        alone = motion_kernels(Draws([seed]), SIZE, 2)
        torch.testing.assert_close(alone[0], batch[seed], rtol=1e-5, atol=1e-8)


def test_different_seeds_give_different_kernels():
    kernels = motion_kernels(Draws(range(30)), SIZE, 0).flatten(1)
    distances = torch.cdist(kernels, kernels, p=1) + 2 * torch.eye(30)
    assert distances.min() > 0.1  # 2 is two kernels that do not overlap


def test_smoothing_is_a_same_convolution():
    sharp = motion_kernels(Draws(range(4)), (24, 36), 0).double().numpy()
    y, x = np.mgrid[-30:31, -30:31]
    gaussian = np.exp(-(x**2 + y**2) / (2 * 3.0**2))
    expected = np.stack([scipy.signal.fftconvolve(k, gaussian, "same") for k in sharp])
    expected /= expected.sum((1, 2), keepdims=True)
    smoothed = motion_kernels(Draws(range(4)), (24, 36), 3).double().numpy()
    np.testing.assert_allclose(smoothed, expected, atol=1e-7)


def test_an_empty_canvas_gives_a_point():
    kernels = motion._normalise(torch.zeros(2, 4, 6))
    assert kernels.sum() == 2
    assert (kernels[:, 2, 3] == 1).all()


# Lines


@pytest.mark.parametrize("width", [1, 2, 4])
def test_brightness_is_a_function_of_the_distance_to_the_line(paths, width):
    canvas = (40, 64)  # lower than the paths are, so that some leave it
    points, valid = paths.points[:20], paths.valid[:20]
    lines = draw_lines(points, valid, canvas, width).double()
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(64.0), indexing="ij")
    pixels = torch.complex(x - 32.5, y - 20.5).reshape(-1, 1)
    for line, path, exists in zip(lines, points, valid, strict=True):
        start, step = path[:-1][exists[1:]], path.diff()[exists[1:]]
        relative = (pixels - start) / step  # 0 at the start of the segment, 1 at its end
        nearest = relative.real.clamp(0, 1)
        distance = ((relative - nearest).abs() * step.abs()).amin(1)
        expected = ((width + 1) / 2 - distance).clamp(0, 1).view(canvas)
        torch.testing.assert_close(line, expected, rtol=0, atol=2e-4)


def test_a_path_that_does_not_move_is_a_dot_at_the_centre():
    dot = draw_lines(torch.zeros(1, 2, dtype=torch.complex128), torch.ones(1, 2) > 0, (12, 18), 1)
    kernel = dot[0].view(6, 2, 9, 2).sum((1, 3))
    assert kernel.argmax() == 3 * 9 + 4
    assert torch.equal(kernel[2], kernel[4])
    assert torch.equal(kernel[:, 3], kernel[:, 5])


# Paths


def test_paths_are_made_of_their_steps(paths):
    exists = paths.valid[:, 1:]
    increments = paths.points.diff(dim=1)
    torch.testing.assert_close(increments.abs(), paths.steps[:, 1:])
    centre = (paths.points * paths.valid).sum(1) / paths.valid.sum(1)
    assert centre.abs().max() < 1e-9
    rotation = increments / torch.polar(paths.steps[:, 1:], paths.headings[:, 1:])
    first = rotation[:, :1]
    assert (rotation - first)[exists].abs().max() < 1e-6
    assert follows(first[:, 0].angle() / math.pi, "uniform")


def test_total_length(paths):
    scale = 0.75 * DIAGONAL
    assert (paths.total <= scale * (1 + paths.intensity**2)).all()
    assert follows(paths.intensity, "uniform")
    error = paths.total.std() / math.sqrt(len(paths.total))
    assert abs(paths.total.mean() - scale * (1 / 2 + 1 / 6)) < 4 * error
    # Without its second term the length is uniform; with it, the slope on I^2 is 1/2.
    straight = paths.intensity < 0.1
    assert follows(paths.total[straight] / scale, "uniform")
    slope = scipy.stats.linregress(paths.intensity**2, paths.total / scale)
    assert abs(slope.slope - 0.5) < 4 * slope.stderr


def test_steps_stop_at_the_total(paths):
    count = paths.valid.sum(1)
    assert (paths.valid == (torch.arange(paths.valid.shape[1]) < count[:, None])).all()
    assert count.min() >= 2
    assert count.max() < motion.MAX_STEPS
    last = paths.steps.gather(1, count[:, None] - 1)[:, 0]
    length = paths.steps.sum(1)
    assert (length >= paths.total).all()
    assert (length - last < paths.total).all()
    assert (paths.steps < paths.total[:, None]).all()
    assert (paths.steps[paths.valid] > 0).all()


@pytest.mark.parametrize("index", [0, 1])  # later steps exist only where earlier ones were short
def test_step_lengths_are_beta_cut_off_at_the_total(paths, index):
    longest = (1 - paths.intensity + 0.1) * DIAGONAL
    beta = scipy.stats.beta(1, 30)
    relative, cut = paths.steps[:, index] / longest, paths.total / longest
    assert follows(beta.cdf(relative) / beta.cdf(cut), "uniform")
    uncut = cut > 0.5
    assert uncut.sum() > 1000
    assert follows(relative[uncut], beta.cdf)


def test_first_heading(paths):
    assert follows(paths.max_angle / (math.pi * paths.intensity), "uniform")
    assert follows(paths.headings[:, 0] / paths.max_angle, scipy.stats.uniform(-1, 2).cdf)


def test_later_headings_are_triangular_in_size(paths):
    # How many steps there are does not depend on the headings, so all may be pooled.
    exists = paths.valid[:, 1:]
    right = (paths.max_angle + 0.1)[:, None].expand(exists.shape)[exists]
    mode = (paths.intensity * paths.max_angle)[:, None].expand(exists.shape)[exists]
    law = scipy.stats.triang(mode / right, scale=right)
    assert len(right) > 100_000
    assert follows(law.cdf(paths.headings[:, 1:][exists].abs()), "uniform")


def test_signs_flip_at_the_rate_of_the_path(paths):
    assert follows(paths.flip_rate, scipy.stats.beta(2, 20).cdf)
    signs = paths.headings.sign()
    flips = ((signs[:, 1:] != signs[:, :-1]) & paths.valid[:, 1:]).sum(1)
    chances = paths.valid[:, 1:].sum(1)
    rate = paths.flip_rate
    for group in (rate < rate.median(), rate >= rate.median()):
        expected = (chances * rate)[group].sum()
        deviation = (chances * rate * (1 - rate))[group].sum().sqrt()
        assert abs(flips[group].sum() - expected) < 4 * deviation
    assert abs(signs[:, 0].mean()) < 4 / math.sqrt(len(signs))


def test_the_inverse_of_the_triangular_distribution_function():
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for mode in (0.0, 0.3, 0.7):
        law = scipy.stats.triang(mode / 0.7, scale=0.7)
        drawn = motion._triangular(u, torch.tensor(mode).double(), torch.tensor(0.7).double())
        np.testing.assert_allclose(law.cdf(drawn), u, atol=1e-9)
