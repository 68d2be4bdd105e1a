"""Operators against recorded outputs of an independent implementation.

What they check is also checked by dense algebra, in `test_operators.py`."""

import pytest
import torch
from helpers import (
    regularised_inverse,
)
from torch import Tensor

from degradation import (
    DenseMatrix,
    LinearOperator,
    Mask,
    NullOperator,
    StridedConvolution,
)

# Recorded outputs of an independent implementation


def recorded_case(recorded, name: str) -> tuple[dict, LinearOperator]:
    case = recorded[name]
    tensors, shape = case["tensors"], tuple(case["tensors"]["imshape"][1:])
    if name.startswith("matrix"):
        return case, DenseMatrix(tensors["deg_matrix"], shape)
    return case, Mask(tensors["deg_mask"].squeeze(1), shape)


@pytest.mark.parametrize("name", ["matrix_16", "patches_16", "box_16", "missingbox_16"])
def test_operators_agree_with_recorded_outputs(golden, name):
    case, op = recorded_case(golden("degradations_16"), name)
    y4, y5 = case["H_x4"].squeeze(1), case["H_x5"]
    pairs = [
        (op.H(case["x4"]), y4),
        (op.H(case["x5"]), y5),
        (op.H_pinv(y4), case["pinv_H_x4"]),
        (op.H_pinv(y5), case["pinv_H_x5"]),
        (op.H_pinv(case["y_rand"]), case["pinv_y_rand_5"]),
        (op.H(case["x4k"].unflatten(1, (2, 3))), case["H_x4k"]),
        (op.H_pinv(case["H_x4k"]).flatten(1, 2), case["pinv_H_x4k"]),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["patches_16", "box_16", "missingbox_16"])
def test_regularised_masks_agree_with_recorded_outputs(golden, name):
    case, op = recorded_case(golden("degradations_16"), name)
    ours, theirs = op.H_pinv(case["H_x4"].squeeze(1), 0.1), case["pinv_H_x4_noise0.1"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    ours, theirs = op.H_pinv(case["y_rand"], 0.1), case["pinv_y_rand_5_noise0.1"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_regularised_matrices_differ_from_the_recorded_ones_on_purpose(golden):
    # There, H† is divided by 1 + σ² whatever the singular values are.
    case, op = recorded_case(golden("degradations_16"), "matrix_16")
    y, theirs = case["y_rand"], case["pinv_y_rand_5_noise0.1"]
    torch.testing.assert_close(op.H_pinv(y) / 1.01, theirs, rtol=1e-4, atol=1e-4)
    inverse = regularised_inverse(case["tensors"]["deg_matrix"], torch.tensor([0.1, 0.1]))
    ours = torch.einsum("bnm,bkm->bkn", inverse, y.double()).float().view_as(theirs)
    torch.testing.assert_close(op.H_pinv(y, 0.1), ours, rtol=1e-4, atol=1e-4)
    assert (ours - theirs).abs().max() > 1e-3


def test_no_measurement_agrees_with_recorded_outputs(golden):
    case = golden("degradations_16")["none_16"]
    op = NullOperator(2, (3, 16, 16))
    for x, y, inverse in (("x4", "H_x4", "pinv_H_x4"), ("x5", "H_x5", "pinv_H_x5")):
        assert (op.H(case[x]) == 0).all() and (case[y] == 0).all()
        ones = torch.ones(case[x].shape[:-3] + (1,))
        assert torch.equal(op.H_pinv(ones), case[inverse])


@pytest.mark.parametrize("name", ["motion_s2_16", "motion_s4_16", "motion_s8_16", "srconv_s2_16"])
def test_convolution_agrees_with_the_recorded_fourier_coefficients(golden, name):
    # There: correlation on a doubled grid, un-normalised Fourier coefficients of the result, and
    # no response at frequencies where the kernel is below 1e-4 of its range (26 with stride 2).
    case = golden("degradations_16")[name]
    kernel, stride = case["tensors"]["spatial_kernel"].squeeze(1), case["tensors"]["stride"]
    k, side = kernel.shape[-1], 32 // stride
    kernel = torch.nn.functional.pad(kernel.flip((-2, -1)), (0, 2 * k - 2, 0, 2 * k - 2))
    kernel = without_weak_frequencies(kernel, 32)
    op = StridedConvolution(kernel, stride, (3, 32, 32), tol=0.0)
    for x, y in (("x4", "H_x4"), ("x5", "H_x5")):
        folded = torch.view_as_complex(case[y].unflatten(-1, (3, side, side, 2)).contiguous())
        theirs = torch.fft.ifft2(folded)
        assert theirs.imag.abs().max() < 1e-6
        ours = op.H(torch.nn.functional.pad(case[x], (0, 16, 0, 16))).unflatten(-1, (3, side, side))
        torch.testing.assert_close(ours, theirs.real.view_as(ours), rtol=0, atol=2e-6)


def without_weak_frequencies(kernel: Tensor, side: int) -> Tensor:
    """The kernel `[B, side, side]`, its centre kept, with small Fourier coefficients zeroed."""
    before = side // 2 - kernel.shape[-1] // 2
    after = side - kernel.shape[-1] - before
    padded = torch.nn.functional.pad(kernel.double(), (before, after, before, after))
    spectrum = torch.fft.fft2(padded)
    size = spectrum.abs().flatten(1)
    weak = size < 1e-4 * (size.amax(1, keepdim=True) - size.amin(1, keepdim=True))
    return torch.fft.ifft2(spectrum * ~weak.view(spectrum.shape)).real.to(kernel)
