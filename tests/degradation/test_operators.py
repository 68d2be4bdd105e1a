"""Every concrete operator against dense matrices: adjoint, pseudo-inverse, SVD, what is derived."""

import torch
from helpers import (
    assert_near,
    assert_penrose,
    data,
    dense,
    dense_pinv,
    gaussian,
    images,
    matrix,
    measurements,
    regularised_inverse,
)
from operator_cases import BATCH, CASES, LEVELS, TOLERANCE, both_precisions, build, every_operator

from degradation import (
    ChannelProduct,
    DenseMatrix,
    Mask,
    MotionBlur,
    StridedConvolution,
    ValidConvolution,
)

# What H is


@every_operator
@both_precisions
def test_H_is_its_plain_form(case, dtype):
    op, plain = CASES[case](dtype)
    x = images(op)
    assert op.H(x).dtype == dtype
    assert_near(op.H(x), plain(x), TOLERANCE[dtype] / 100)


@every_operator
@both_precisions
def test_adjoint(case, dtype):
    op = build(case, dtype)
    adjoint = matrix(op.H_adjoint, len(op), (measurements(op),), dtype)
    assert_near(adjoint, dense(op).mT, TOLERANCE[dtype])


@every_operator
@both_precisions
def test_penrose(case, dtype):
    op = build(case, dtype)
    assert_penrose(dense(op), dense_pinv(op), TOLERANCE[dtype])


@every_operator
def test_pseudo_inverse_is_that_of_the_dense_matrix(case):
    op = build(case)
    assert_near(dense_pinv(op), torch.linalg.pinv(dense(op), rtol=1e-6), 1e-10)


@every_operator
@both_precisions
def test_regularised_pseudo_inverse_with_a_noise_level_for_each_image(case, dtype):
    op = build(case, dtype)
    H = dense(build(case))  # of dependent rows the formula itself is too inexact in float32
    assert_near(dense_pinv(op, LEVELS), regularised_inverse(H, LEVELS), TOLERANCE[dtype])
    number = torch.full((BATCH,), 0.3, dtype=torch.float64)
    assert_near(dense_pinv(op, 0.3), regularised_inverse(H, number), TOLERANCE[dtype])


@every_operator
@both_precisions
def test_noise_level_zero_of_a_tensor_is_the_plain_pseudo_inverse(case, dtype):
    op = build(case, dtype)
    y = data(op)
    assert torch.equal(op.H_pinv(y, torch.zeros(BATCH)), op.H_pinv(y))


# The SVD


@every_operator
@both_precisions
def test_singular_values_are_those_of_the_dense_matrix(case, dtype):
    op = build(case, dtype)
    exact = torch.linalg.svdvals(dense(op).double())
    ours = op.s.double().sort(descending=True).values
    assert (ours >= 0).all()
    n = min(exact.shape[1], ours.shape[1])
    assert (ours[:, n:] == 0).all()
    atol = TOLERANCE[dtype] * exact.max().item()
    torch.testing.assert_close(ours[:, :n], exact[:, :n], rtol=0, atol=max(atol, 1e-14))


@every_operator
@both_precisions
def test_svd(case, dtype):
    op = build(case, dtype)
    R, tol = op.s.shape[1], TOLERANCE[dtype]
    U, V = (matrix(f, len(op), (R,), dtype) for f in (op.U, op.V))
    Vt = matrix(op.Vt, len(op), op.image_shape, dtype)
    Ut = matrix(op.Ut, len(op), (measurements(op),), dtype)
    assert_near(Vt, V.mT, tol)
    assert_near(Ut, U.mT, tol)
    assert_near(U @ (op.s.unsqueeze(-1) * Vt), dense(op), tol)
    kept = torch.diag_embed((op.s > 0).to(dtype))  # orthonormal, and zero where s = 0
    torch.testing.assert_close(Vt @ V, kept, rtol=0, atol=tol)
    torch.testing.assert_close(Ut @ U, kept, rtol=0, atol=tol)


def test_small_singular_values_of_a_convolution_are_dropped_from_H_too():
    kernel, shape = gaussian(BATCH, 3, 3), (2, 8, 8)
    full = StridedConvolution(kernel, 2, shape, tol=0.0)
    cut = StridedConvolution(kernel, 2, shape, tol=0.6)
    stays = full.s > 0.6 * full.s.amax(1, keepdim=True)
    assert 0.1 < stays.double().mean() < 0.9
    torch.testing.assert_close(cut.s, full.s * stays)
    U = matrix(cut.U, BATCH, (cut.s.shape[1],), torch.float64)
    assert_near(dense(cut), U @ U.mT @ dense(full), 1e-12)
    assert_penrose(dense(cut), dense_pinv(cut), 1e-12)


def test_small_singular_values_of_a_matrix_are_dropped_from_H_too():
    U, _ = torch.linalg.qr(gaussian(1, 4, 4))
    V, _ = torch.linalg.qr(gaussian(1, 12, 4))
    s = torch.tensor([1.0, 0.2, 0.05, 0.01], dtype=torch.float64)
    op = DenseMatrix((U * s) @ V.mT, (3, 2, 2), tol=0.1)
    assert_near(dense(op), (U[..., :2] * s[:2]) @ V[..., :2].mT, 1e-12)
    assert_penrose(dense(op), dense_pinv(op), 1e-12)


def test_an_ill_conditioned_matrix_keeps_its_accuracy_in_float32():
    # Singular values from 1 to 0.003, all above the truncation.
    U, _ = torch.linalg.qr(gaussian(BATCH, 20, 20))
    V, _ = torch.linalg.qr(gaussian(BATCH, 192, 20, seed=1))
    s = torch.logspace(0, -2.5, 20, dtype=torch.float64)
    op = DenseMatrix(((U * s) @ V.mT).float(), (3, 8, 8))
    right = matrix(op.V, BATCH, (20,), torch.float32)
    torch.testing.assert_close(
        right.mT @ right, torch.eye(20).expand(BATCH, 20, 20), atol=1e-4, rtol=0
    )
    assert_penrose(dense(op), dense_pinv(op), 1e-4)


@every_operator
def test_project_is_the_nearest_image_with_the_measurement(case):
    op = build(case)
    x, y = images(op), data(op)
    projected = op.project(x, y)
    torch.testing.assert_close(op.H(projected), op.H(op.H_pinv(y)), rtol=0, atol=1e-10)
    torch.testing.assert_close(op.project(x, op.H(x)), x, rtol=0, atol=1e-10)
    hidden = images(op, seed=5)
    hidden = hidden - op.H_pinv(op.H(hidden))  # null space: to move along it would only be farther
    assert ((projected - x) * hidden).flatten(1).sum(1).abs().max() < 1e-9


@every_operator
def test_the_range_has_the_rank_of_the_dense_matrix(case):
    op = build(case)
    P = matrix(lambda y: op.H(op.H_pinv(y)), len(op), (measurements(op),), torch.float64)
    rank = torch.linalg.matrix_rank(dense(op), rtol=1e-6)
    torch.testing.assert_close(P.diagonal(dim1=1, dim2=2).sum(1).round().long(), rank)


@every_operator
def test_rows_that_do_not_exist_measure_nothing(case):
    op = build(case)
    assert op.rows.dtype == torch.bool
    seen = dense(op).abs().amax(2) > 1e-12
    if isinstance(op, StridedConvolution):  # a camera has its pixels, whatever the kernel
        assert op.rows.all()
    else:
        assert torch.equal(op.rows, seen)


@every_operator
def test_measurement_image(case):
    op = build(case)
    x = images(op)
    picture = op.measurement_image(op.H(x))
    if isinstance(op, Mask):
        assert torch.equal(picture, x * op.mask)
    elif isinstance(op, StridedConvolution):
        c, h, w = op.image_shape
        assert picture.shape == (BATCH, c, h // op.stride, w // op.stride)
        assert torch.equal(picture.flatten(1), op.H(x))
    elif isinstance(op, ChannelProduct) and isinstance(op.measured, Mask | StridedConvolution):
        assert picture.shape[:2] == op.present.shape
        assert torch.equal(picture.flatten(1), op.H(x))
    elif isinstance(op, ChannelProduct) and isinstance(op.measured, ValidConvolution):
        assert picture.shape == (BATCH, 1, 6, 8)
    else:
        assert picture is None


def test_the_pseudo_inverse_of_a_small_blur_divides_by_s_once() -> None:
    """In float32 Hx = y holds to rounding times s_max/s_min (at most 50), not its square."""
    operator = MotionBlur().sample((3, 32, 32), 4, range(64))
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = operator.H(x)
    for restored in (operator.H_pinv(y), operator.V(operator.Vt(x))):
        assert (operator.H(restored) - y).abs().max() < 50 * torch.finfo(y.dtype).eps
