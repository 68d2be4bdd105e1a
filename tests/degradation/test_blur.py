"""Blur and super-resolution against independent implementations of the same thing."""

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
import torch.nn.functional as F
from helpers import gaussian
from PIL import Image

from degradation import (
    AveragePool,
    Bicubic,
    Draws,
    FixedKernel,
    GaussianBlur,
    StridedConvolution,
    UniformBlur,
)


def picture(family, x, structure=1, seeds=(0,)):
    """What the family measures of images `[B, C, h, w]`, with nothing dropped, in float64."""
    kernel = family.kernels(tuple(x.shape[1:]), structure, seeds).double()
    kernel = kernel.expand(len(x), -1, -1)  # one for all
    op = StridedConvolution(kernel, structure, tuple(x.shape[1:]), tol=0.0)
    return op.measurement_image(op.H(x))


@pytest.mark.parametrize("size", [(8, 8), (24, 48), (72, 24)])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_average_pooling_is_that_of_torch(stride, size):
    if any(n % stride for n in size):
        size = (24, 48)
    x = gaussian(2, 3, *size)
    ours = picture(AveragePool((stride,)), x, stride, (0, 1))
    torch.testing.assert_close(ours, F.avg_pool2d(x, stride), rtol=0, atol=1e-6)
    op = AveragePool().sample(
        (3, *size), stride, [0, 1]
    )  # blocks do not overlap: one s, 1 / stride
    torch.testing.assert_close(op.s, torch.full_like(op.s, 1 / stride), rtol=1e-5, atol=0)
    torch.testing.assert_close(op.H(x.float()), F.avg_pool2d(x, stride).flatten(1).float())


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_bicubic_is_the_antialiased_one_of_torch_inside(stride):
    h, w = 12 * stride, 15 * stride
    x = gaussian(1, 3, h, w)
    ours = picture(Bicubic(), x, stride)
    theirs = F.interpolate(x, (12, 15), mode="bicubic", antialias=True)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=1e-6)
    op = Bicubic().sample((3, h, w), stride, [0, 1])
    assert op.s.min() > 0.4 * op.s.max()  # nothing is dropped: this is what is measured
    torch.testing.assert_close(op.H(x.float())[0], ours.flatten().float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_bicubic_is_that_of_pillow_inside(stride):
    x = gaussian(1, 1, 16 * stride, 16 * stride)
    small = Image.fromarray(x[0, 0].float().numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    ours = picture(Bicubic(), x, stride)[0, 0, 2:-2, 2:-2]
    torch.testing.assert_close(
        ours.float(), torch.from_numpy(np.array(small))[2:-2, 2:-2], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("family", [AveragePool(), Bicubic()])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_sub_sampling_does_not_shift(family, stride):
    """A ramp is sampled at the middle of each block, a constant is kept."""
    ramp = torch.arange(16.0 * stride, dtype=torch.float64).expand(1, 1, 16 * stride, -1)
    middle = stride * torch.arange(16) + (stride - 1) / 2
    ours = picture(family, ramp, stride)[0, 0, :, 2:-2]
    torch.testing.assert_close(ours, middle.double()[2:-2].expand_as(ours), rtol=0, atol=1e-4)
    grey = picture(family, torch.full_like(ramp, 0.3), stride)
    torch.testing.assert_close(grey, torch.full_like(grey, 0.3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 3.5])
def test_gaussian_blur_is_that_of_scipy(sigma):
    x = gaussian(1, 1, 40, 32)
    ours = picture(GaussianBlur(sigma=(sigma,)), x)
    reach = math.ceil(4 * sigma)
    theirs = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), sigma, mode="wrap", radius=reach)
    torch.testing.assert_close(ours[0, 0], torch.from_numpy(theirs), rtol=0, atol=1e-6)


def test_standard_deviations_are_uniform():
    kernels = GaussianBlur(sigma=(1.0, 4.0)).kernels((1, 64, 64), 1, range(1000))
    offset = torch.arange(64) - 32
    sigma = (kernels.sum(1) * offset.square()).sum(1).sqrt().numpy()
    assert scipy.stats.kstest((sigma - 1) / 3, "uniform").statistic < 0.05  # cut off at 4σ
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(1000), rtol=0, atol=1e-5)
    assert kernels.flip((1, 2)).roll((1, 1), (1, 2)).sub(kernels).abs().max() < 1e-6


def test_a_gaussian_wider_than_the_image_goes_round_it():
    x = gaussian(1, 1, 8, 8)
    ours = picture(GaussianBlur(sigma=(30.0,)), x)
    torch.testing.assert_close(ours, x.mean().expand_as(ours), rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", [1, 3, 7])
def test_uniform_blur_is_that_of_scipy(side):
    x = gaussian(1, 1, 16, 20)
    ours = picture(UniformBlur(sides=(side,)), x)
    theirs = scipy.ndimage.uniform_filter(x[0, 0].numpy(), side, mode="wrap")
    torch.testing.assert_close(ours[0, 0], torch.from_numpy(theirs), rtol=0, atol=1e-6)


def test_sides_are_uniform():
    kernels = UniformBlur().kernels((1, 16, 16), 1, range(1000))
    counts = [(kernels.amax((1, 2)).mul(side**2) - 1).abs().lt(1e-4).sum() for side in (3, 5, 7, 9)]
    assert sum(counts) == 1000 and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_a_given_kernel_is_every_operator():
    kernel = gaussian(5, 4).float()
    op = FixedKernel(kernel, 2).sample((3, 12, 8), 2, [1, 2, 3])
    x = gaussian(3, 3, 12, 8).float()
    expected = StridedConvolution(kernel[None], 2, (3, 12, 8)).expand(3)
    assert torch.equal(op.H(x), expected.H(x))
    assert all(getattr(op, name).stride(0) == 0 for name in op.tensors)  # stored once
    assert FixedKernel(kernel, 4).structures() == (4,) and FixedKernel(kernel).structure(9) == 1
    # Two kernels are two families, whatever they hold.
    assert FixedKernel(kernel) != FixedKernel(2 * kernel)


def test_blur_may_be_sub_sampled():
    family = GaussianBlur((2, 4), (1.5,))
    assert {family.structure(seed) for seed in range(30)} == {2, 4}
    x = gaussian(1, 2, 16, 16)
    fine = picture(GaussianBlur(sigma=(1.5,)), x)
    torch.testing.assert_close(picture(family, x, 4), fine[..., ::4, ::4], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AveragePool(()), r"strides must be whole numbers of at least 1, not \(\)"),
        (lambda: Bicubic((2, 0)), r"not \(2, 0\)"),
        (lambda: GaussianBlur(sigma=(0.0, 1.0)), r"sigma must be one number or two .* \(0, 100\]"),
        (lambda: GaussianBlur(sigma=(2.0, 1.0)), r"not \(2.0, 1.0\)"),
        (lambda: GaussianBlur(sigma=(1.0, math.nan)), "sigma must be"),
        (lambda: GaussianBlur(sigma=()), r"not \(\)"),
        (lambda: GaussianBlur(sigma=(1.0, 2.0, 3.0)), "one number or two"),
        (lambda: GaussianBlur((0,)), "strides must be"),
        (lambda: UniformBlur(sides=(3, 4)), r"sides must be odd numbers of at least 1, not \(3, 4"),
        (lambda: UniformBlur().check((3, 8, 16)), "at most those of an image of 8×16, not 9"),
        (lambda: FixedKernel(torch.zeros(3, 3)), "kernel must be .* not all zero"),
        (lambda: FixedKernel(torch.ones(3)), r"not of shape \[3\]"),
        (lambda: FixedKernel(torch.full((3, 3), math.inf)), "kernel must be .* finite"),
        (lambda: FixedKernel(torch.ones(3, 3), 0), "stride must be a whole number of at least 1"),
        (
            lambda: FixedKernel(torch.ones(9, 9)).check((3, 8, 8)),
            "a kernel of 9×9 pixels is larger",
        ),
        (lambda: AveragePool().check((3, 12, 12)), "stride 8 does not divide"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_draws_of_a_span_of_one_number_are_that_number():
    assert (
        GaussianBlur(sigma=(2.0,))
        .kernels((1, 32, 32), 1, [1, 2])[0]
        .equal(GaussianBlur(sigma=(2.0, 2.0)).kernels((1, 32, 32), 1, [3])[0])
    )
    assert len(Draws([1, 2]).uniform((), "sigma")) == 2
