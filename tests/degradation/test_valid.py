"""Blur without wrap-around: against dense matrices, the circular operator, and itself in pieces."""

import warnings

import pytest
import torch
from helpers import (
    assert_near,
    assert_penrose,
    dense,
    dense_pinv,
    gaussian,
    matrix,
    regularised_inverse,
)
from torch import Tensor

from degradation import (
    Draws,
    GaussianNoise,
    LinearOperator,
    MotionBlur,
    SRConv,
    StridedConvolution,
    ValidConvolution,
    ValidRegion,
)

SHAPE = (3, 12, 8)
LEVELS = torch.tensor([0.05, 0.3])


def strong(kh: int, kw: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Two random kernels with a strong centre: no singular value is near the truncation."""
    kernel = 0.2 * gaussian(2, kh, kw) / (kh * kw) ** 0.5
    kernel[:, kh // 2, kw // 2] += 1
    return kernel.to(dtype)


CASES = [(3, 3, 1), (4, 5, 1), (2, 4, 2), (5, 3, 2), (6, 6, 4), (1, 1, 4)]


@pytest.mark.parametrize(("kh", "kw", "stride"), CASES)
def test_valid_samples_are_those_of_the_circular_blur_that_do_not_wrap(
    kh: int, kw: int, stride: int
) -> None:
    kernel, x = strong(kh, kw), gaussian(2, *SHAPE)
    op = ValidConvolution(kernel, stride, SHAPE)
    y = op.H(x)
    circular = StridedConvolution(kernel, stride, SHAPE)
    assert_near(y, circular.H(x) * op.rows, 1e-12)
    # A sample exists exactly where the circular one does not depend on what is beyond the border.
    padded = torch.nn.functional.pad(x, (stride * 4,) * 4, value=7.0)
    beyond = StridedConvolution(kernel, stride, padded.shape[1:]).measurement_image(
        StridedConvolution(kernel, stride, padded.shape[1:]).H(padded)
    )[..., 4:-4, 4:-4]
    alone = (beyond - circular.measurement_image(circular.H(x))).abs() < 1e-9
    assert torch.equal(op.rows, alone.flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kh", "kw", "stride"), CASES)
def test_pseudo_inverse_and_svd(kh: int, kw: int, stride: int, dtype: torch.dtype) -> None:
    op = ValidConvolution(strong(kh, kw, dtype), stride, SHAPE)
    tol = 1e-4 if dtype == torch.float32 else 1e-10
    H = dense(op)
    assert H.dtype == dtype
    assert_penrose(H, dense_pinv(op), tol)
    assert_near(dense_pinv(op, LEVELS.to(dtype)), regularised_inverse(H, LEVELS), tol)
    exists = (op.s > 0).double()
    for there, back, size in ((op.V, op.Vt, op.s.shape), (op.U, op.Ut, op.s.shape)):
        z = gaussian(*size, seed=1).to(dtype)
        assert_near(back(there(z)), z * exists, tol)
    x, y = gaussian(2, *SHAPE).to(dtype), gaussian(*op.rows.shape, seed=2).to(dtype)
    adjoint = (x * op.H_adjoint(y)).flatten(1).sum(1, keepdim=True)
    assert_near((op.H(x) * y).sum(1, keepdim=True), adjoint, tol)


def test_a_stack_shares_the_operator() -> None:
    op = ValidConvolution(strong(3, 3), 2, SHAPE)
    stack = gaussian(2, 5, *SHAPE)
    y = op.H(stack)
    assert y.shape == (2, 5, op.rows.shape[1])
    for k in range(5):
        assert_near(y[:, k], op.H(stack[:, k]), 1e-12)
        assert_near(op.H_pinv(y)[:, k], op.H_pinv(y[:, k]), 1e-12)


@pytest.mark.parametrize(("kh", "kw", "stride"), CASES)
def test_the_form_without_svd_measures_the_same(kh: int, kw: int, stride: int) -> None:
    kernel, x = strong(kh, kw), gaussian(2, *SHAPE)
    small, large = ValidConvolution(kernel, stride, SHAPE), ValidRegion(kernel, stride, SHAPE)
    assert_near(large.H(x), small.H(x), 1e-12)
    assert torch.equal(large.rows, small.rows)
    stack = gaussian(2, 4, *SHAPE)
    assert_near(large.H(stack), small.H(stack), 1e-12)


@pytest.mark.parametrize(("kh", "kw", "stride"), CASES)
def test_the_form_without_svd_inverts_the_same(kh: int, kw: int, stride: int) -> None:
    kernel = strong(kh, kw)
    small = ValidConvolution(kernel, stride, SHAPE)
    large = ValidRegion(kernel, stride, SHAPE, tol=1e-12)
    M = small.rows.shape[1]
    H = matrix(large.H, 2, SHAPE, torch.float64)
    y = gaussian(2, 5, M)
    assert_near(large.H_adjoint(y), small.H_adjoint(y), 1e-12)
    assert_near(large.H_pinv(y, LEVELS), small.H_pinv(y, LEVELS), 1e-9)
    assert (large.norm >= torch.linalg.svdvals(H)[:, 0] * (1 - 1e-12)).all()
    assert (large.norm < 1.5 * torch.linalg.svdvals(H)[:, 0]).all()
    expected = regularised_inverse(H, 1e-3 * large.norm)
    assert_near(matrix(large.H_pinv, 2, (M,), torch.float64), expected, 1e-8)


@pytest.mark.parametrize(("row", "column"), [(4, 6), (2, 3), (8, 14), (12, 7)])
def test_a_support_beside_the_centre_of_a_large_kernel(row: int, column: int) -> None:
    kernel = torch.zeros(2, 15, 17, dtype=torch.float64)  # larger than the image
    kernel[:, row : row + 3, column : column + 2] = gaussian(2, 3, 2)
    small, large = ValidConvolution(kernel, 1, SHAPE, tol=0.0), ValidRegion(kernel, 1, SHAPE)
    x, y = gaussian(2, *SHAPE), gaussian(2, small.rows.shape[1])
    assert torch.equal(large.rows, small.rows)
    assert_near(large.H(x), small.H(x), 1e-12)
    assert_near(large.H_adjoint(y), small.H_adjoint(y), 1e-12)
    moved = large[[1]].to(torch.float32)
    assert_near(moved.H(x[1:].float()), small.H(x)[1:], 1e-5)


def test_a_photo_in_float32_converges_in_time() -> None:
    kernel = MotionBlur().kernels((3, 64, 64), 2, [3])
    op = ValidRegion(kernel, 2, (3, 96, 96))
    x = torch.nn.functional.interpolate(
        gaussian(1, 3, 12, 12, dtype=torch.float32), (96, 96), mode="bilinear"
    )
    problem = GaussianNoise(0.02).measure(op, x, Draws([0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = problem.pinv()
    error = (op.H(estimate) - problem.y)[op.rows].square().mean().sqrt()
    assert error < 0.02


def test_borders_of_zeros_do_not_count_and_the_centre_stays() -> None:
    kernel = torch.zeros(1, 9, 9, dtype=torch.float64)
    kernel[0, 4, 6] = 1.0  # two pixels to the right of the centre: y[i, j] = x[i, j - 2]
    op, x = ValidConvolution(kernel, 1, SHAPE), gaussian(1, *SHAPE)
    assert_near(op.measurement_image(op.H(x))[..., 2:], x[..., :-2], 1e-12)
    assert torch.equal(op.rows.view(3, 12, 8)[..., :2].any(), torch.tensor(False))
    assert int(op.rows.sum()) == 3 * 12 * 6


def test_noise_and_measurements_keep_to_the_rows_that_exist() -> None:
    op = ValidConvolution(strong(5, 5), 2, SHAPE)
    problem = GaussianNoise(0.1).measure(op, gaussian(2, *SHAPE), Draws([1, 2]))
    assert 0 < int((~op.rows).sum()) < op.rows.numel()
    assert not problem.y[~op.rows].any()
    assert problem.y[op.rows].all()
    assert_near(op.H_pinv(problem.y + 5 * ~op.rows), op.H_pinv(problem.y), 1e-12)


def test_many_tiles_share_one_matrix() -> None:
    op = ValidConvolution(strong(3, 3)[:1], 1, SHAPE)
    many = op.expand(500)[:400].to("cpu")
    assert len(many) == 400
    for name in op.tensors:
        assert getattr(many, name).data_ptr() == getattr(op, name).data_ptr()
        assert getattr(many, name).stride(0) == 0
    x = gaussian(1, *SHAPE)
    assert_near(many.H(x.expand(400, -1, -1, -1))[-1:], op.H(x), 1e-12)


@pytest.mark.parametrize("operator", [ValidConvolution, ValidRegion])
@pytest.mark.parametrize(
    ("kernel", "stride", "sentence"),
    [
        (torch.ones(1, 13, 3), 1, "13×3 pixels leaves no sample inside 12×8"),
        (torch.ones(1, 3, 3), 3, "stride 3 does not divide"),
        (torch.ones(1, 3, 3), 0, "stride 0 does not divide"),
        (torch.ones(3, 3), 1, "must be"),
        (torch.zeros(1, 3, 3), 1, "not all zero"),
        (torch.full((1, 3, 3), torch.nan), 1, "finite"),
    ],
)
def test_refusals(
    operator: type[LinearOperator], kernel: Tensor, stride: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        operator(kernel, stride, SHAPE)  # type: ignore[call-arg]


@pytest.mark.parametrize(("side", "stride"), [(66, 1), (256, 2), (256, 4)])
def test_what_is_too_large_is_refused(side: int, stride: int) -> None:
    kernel = torch.ones(2, 2, 2)  # two matrices of 4096×65536 values are past 1 GiB
    with pytest.raises(ValueError, match="too many for an exact matrix"):
        ValidConvolution(kernel, stride, (3, side, side))


@pytest.mark.parametrize("family", [MotionBlur(), SRConv()])
def test_families_hand_out_their_kernels(family: MotionBlur | SRConv) -> None:
    shape, seeds = (3, 16, 24), [3, 4]
    for stride in family.structures():
        op = family.sample(shape, stride, seeds)
        again = StridedConvolution(family.kernels(shape, stride, seeds), stride, shape)
        for name in op.tensors:
            assert torch.equal(getattr(op, name), getattr(again, name))
