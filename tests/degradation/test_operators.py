"""Every concrete operator against dense matrices: adjoint, pseudo-inverse, SVD, both forms."""

import math
from collections.abc import Callable

import pytest
import scipy.linalg
import torch
from helpers import (
    assert_near,
    assert_penrose,
    check_laws,
    data,
    dense,
    dense_pinv,
    gaussian,
    images,
    matrix,
    measurements,
    precision,
    regularised_inverse,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from degradation import (
    BlockHadamard,
    ChannelProduct,
    DenseMatrix,
    LinearOperator,
    Mask,
    MotionBlur,
    NullOperator,
    Problem,
    StridedConvolution,
    ValidConvolution,
    ValidRegion,
)
from degradation.base import apply_matrix
from networks import Denoiser, make_config

BATCH = 3
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
LEVELS = torch.tensor([0.05, 0.3, 2.0])  # one for each image


# The operators: each with the plain form of H that it must have


def mask(shape, channels, fill=None):
    values = (gaussian(BATCH, channels, *shape[1:]) > 0).double()
    if fill is not None:
        values = torch.full_like(values, fill)

    def make(dtype):
        return Mask(values.to(dtype), shape), lambda x: (x * values.to(x)).flatten(1)

    return make


def spatial(kernel: Tensor, stride: int, x: Tensor) -> Tensor:
    """y[i, j] = Σ_ab k[a, b] x[s·i + kh//2 − a, s·j + kw//2 − b], indices on the circle."""
    y = torch.zeros_like(x)
    kh, kw = kernel.shape[-2:]
    for a in range(kh):
        for b in range(kw):
            shifted = x.roll((a - kh // 2, b - kw // 2), (-2, -1))
            y += kernel[:, a, b].to(x).view(-1, 1, 1, 1) * shifted
    return y[..., ::stride, ::stride].flatten(1)


def blur(*args, transforms, **options):
    """A convolution by Fourier transforms, or by a matrix where it is small enough."""
    with pytest.MonkeyPatch.context() as patch:
        if transforms:
            patch.setattr("degradation.convolution._SMALL", 0)
        return StridedConvolution(*args, **options)


def convolution(shape, stride, kernel, transforms=True):
    def make(dtype):
        op = blur(kernel.to(dtype), stride, shape, transforms=transforms)
        return op, lambda x: spatial(kernel, stride, x)

    return make


def rows(shape, values):
    def make(dtype):
        op = DenseMatrix(values.to(dtype), shape)
        return op, lambda x: torch.einsum("bmn,bn->bm", values.to(x), x.flatten(1))

    return make


def hadamard(shape, count):
    n = math.prod(shape)
    signs = (2 * (gaussian(BATCH, n, seed=6) > 0) - 1).to(torch.int8)
    index = gaussian(BATCH, n, seed=7).argsort(1)[:, :count]
    block = math.gcd(n, 2**30)
    blocks = scipy.linalg.block_diag(*[scipy.linalg.hadamard(block)] * (n // block))
    every_row = torch.from_numpy(blocks / block**0.5)

    def make(dtype):
        op = BlockHadamard(signs, index, shape).to(dtype)
        return op, lambda x: ((x.flatten(1) * signs) @ every_row.to(x)).gather(1, index)

    return make


def product(channels, case):
    """Mixtures of `channels` weights `[B, m, C]`, each measured as in a case of one channel."""

    def make(dtype):
        op, plain = case(dtype)
        mixing = channels.to(dtype)

        def apply(x):
            mixed = torch.einsum("bmc,bchw->bmhw", mixing.to(x), x)
            return torch.cat([plain(m[:, None]) for m in mixed.unbind(1)], 1)

        return ChannelProduct(mixing, op), apply

    return make


def valid(shape, stride, kernel):
    def make(dtype):
        op = ValidConvolution(kernel.to(dtype), stride, shape)
        return op, lambda x: spatial(kernel, stride, x) * op.rows

    return make


def null_of(shape):
    def make(dtype):
        return NullOperator(BATCH, shape).to(dtype), lambda x: x.new_zeros(BATCH, 1)

    return make


def kernels(kh, kw):
    """Random, with a strong centre: their spectrum stays far above the truncation."""
    kernel = 0.2 * gaussian(BATCH, kh, kw) / (kh * kw) ** 0.5
    kernel[:, kh // 2, kw // 2] += 1
    return kernel


def same(values):
    return torch.tensor(values, dtype=torch.float64).expand(BATCH, -1, -1)


def dependent():
    values = gaussian(BATCH, 9, 48)
    values[0, 4] = values[0, 1]
    values[1, 5] = values[1, 0] - 2 * values[1, 3]
    values[2, 2:] = values[2, :1]
    return values


def some_rows_zero():
    values = gaussian(BATCH, 8, 48)
    values[0, 5:] = 0
    values[1, :3] = 0
    values[2] = 0
    return values


def grey():
    return torch.full((BATCH, 1, 3), 1 / 3, dtype=torch.float64)


def dependent_mixtures():
    values = gaussian(BATCH, 3, 3)
    values[0, 2] = values[0, 0] - 2 * values[0, 1]
    values[1, 1] = 0
    values[2] = 0
    return values


CASES: dict[str, Callable[[torch.dtype], tuple[LinearOperator, Callable[[Tensor], Tensor]]]] = {
    "mask, one channel": mask((3, 6, 8), 1),
    "mask, three channels": mask((3, 6, 8), 3),
    "mask of grey images": mask((1, 6, 8), 1),
    "mask, empty": mask((3, 4, 4), 1, fill=0),
    "mask, full": mask((3, 4, 4), 3, fill=1),
    "convolution, even": convolution((3, 8, 8), 2, kernels(3, 3)),
    "convolution, odd": convolution((2, 9, 15), 3, kernels(4, 5)),
    "convolution, not square": convolution((2, 6, 8), 1, kernels(3, 2)),
    "convolution, stride 4": convolution((2, 8, 12), 4, kernels(5, 7)),
    "convolution, odd coarse grid": convolution((1, 10, 6), 2, kernels(2, 6)),
    "convolution, kernel as large as the image": convolution((1, 5, 7), 1, kernels(5, 7)),
    "convolution, one measured pixel": convolution((2, 4, 4), 4, kernels(4, 4)),
    "convolution, no response at Nyquist": convolution((1, 8, 6), 1, same([[0.5, 0.5]])),
    "convolution, no response to constants": convolution((2, 6, 6), 1, same([[1], [-1]])),
    "convolution, zeros on the coarse grid": convolution((1, 8, 8), 2, same([[1, 0, 1]])),
    "convolution, kernel of zeros": convolution((1, 4, 4), 2, same([[0.0]])),
    "convolution by a matrix": convolution((3, 8, 12), 2, kernels(3, 4), transforms=False),
    "convolution by a matrix, zeros": convolution(
        (2, 8, 6), 1, same([[0.5, 0.5]]), transforms=False
    ),
    "convolution by a matrix, kernel of zeros": convolution(
        (1, 4, 4), 2, same([[0.0]]), transforms=False
    ),
    "matrix": rows((3, 4, 4), gaussian(BATCH, 10, 48)),
    "matrix, more rows than pixels": rows((1, 4, 5), gaussian(BATCH, 31, 20)),
    "matrix, dependent rows": rows((3, 4, 4), dependent()),
    "matrix, rows of zeros": rows((3, 4, 4), some_rows_zero()),
    "no measurement": null_of((3, 4, 6)),
    "hadamard, one block": hadamard((1, 4, 8), 9),
    "hadamard, three blocks": hadamard((3, 4, 4), 20),
    "hadamard, every row": hadamard((3, 2, 4), 24),
    "hadamard, one row": hadamard((1, 6, 5), 1),
    "hadamard, odd sides": hadamard((2, 3, 5), 11),
    "grey": product(grey(), mask((1, 4, 5), 1, fill=1)),
    "grey and masked": product(grey(), mask((1, 4, 5), 1)),
    "grey and blurred": product(grey(), convolution((1, 6, 8), 2, kernels(3, 3))),
    "grey, zeros on the coarse grid": product(grey(), convolution((1, 8, 8), 2, same([[1, 0, 1]]))),
    "grey and valid": product(grey(), valid((1, 6, 8), 1, kernels(3, 2))),
    "grey and random rows": product(grey(), rows((1, 4, 4), gaussian(BATCH, 5, 16))),
    "grey and not seen": product(grey(), null_of((1, 4, 4))),
    "two mixtures of five channels": product(gaussian(BATCH, 2, 5), mask((1, 4, 3), 1)),
    "more mixtures than channels": product(
        gaussian(BATCH, 4, 2), convolution((1, 4, 6), 2, kernels(3, 3))
    ),
    "mixtures, dependent and zero": product(dependent_mixtures(), mask((1, 3, 4), 1)),
}

every_operator = pytest.mark.parametrize("case", list(CASES))
both_precisions = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


def build(case: str, dtype: torch.dtype = torch.float64) -> LinearOperator:
    return CASES[case](dtype)[0]


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


# The two forms, and what is derived


def both_forms(op: LinearOperator) -> list[tuple[Callable, list[Tensor]]]:
    x, y = images(op, 4), data(op, 4)
    z = gaussian(len(op), 4, op.s.shape[1], seed=3, dtype=precision(op))
    return [
        (op.H, [x]),
        (op.H_adjoint, [y]),
        (op.H_pinv, [y]),
        (lambda y: op.H_pinv(y, LEVELS), [y]),
        (op.project, [x, y]),
        (op.clean, [y]),
        (op.Vt, [x]),
        (op.V, [z]),
        (op.Ut, [y]),
        (op.U, [z]),
    ]


@every_operator
@both_precisions
def test_a_stack_is_its_images_one_by_one(case, dtype):
    op = build(case, dtype)
    for fn, stacks in both_forms(op):
        stacked = fn(*stacks)
        alone = torch.stack([fn(*(s[:, k] for s in stacks)) for k in range(4)], 1)
        torch.testing.assert_close(stacked, alone, rtol=0, atol=300 * torch.finfo(dtype).eps)
        assert fn(*(s[:, :1] for s in stacks)).shape == stacked[:, :1].shape


@every_operator
def test_project_is_the_nearest_image_with_the_measurement(case):
    op = build(case)
    x, y = images(op), data(op)
    projected = op.project(x, y)
    torch.testing.assert_close(op.H(projected), op.clean(y), rtol=0, atol=1e-10)
    torch.testing.assert_close(op.project(x, op.H(x)), x, rtol=0, atol=1e-10)
    hidden = images(op, seed=5)
    hidden = hidden - op.H_pinv(op.H(hidden))  # null space: to move along it would only be farther
    assert ((projected - x) * hidden).flatten(1).sum(1).abs().max() < 1e-9


@every_operator
def test_clean_is_the_orthogonal_projection_on_the_range(case):
    op = build(case)
    P = matrix(op.clean, len(op), (measurements(op),), torch.float64)
    assert_near(P @ P, P, 1e-10)
    assert_near(P.mT, P, 1e-10)
    assert_near(P @ dense(op), dense(op), 1e-10)
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


# The batch, precision and gradients


@every_operator
@pytest.mark.parametrize(
    "index", [slice(1, 3), [2, 0], torch.tensor([1]), torch.tensor([True, False, True])]
)
def test_index_gives_the_operators_of_a_sub_batch(case, index):
    op = build(case)
    part = op[index]
    x, y = images(op), data(op)
    assert len(part) == len(x[index])
    torch.testing.assert_close(part.H(x[index]), op.H(x)[index])
    torch.testing.assert_close(part.H_pinv(y[index], 0.1), op.H_pinv(y, 0.1)[index])
    assert torch.equal(part.rows, op.rows[index])


@every_operator
def test_expand_repeats_the_batch_in_blocks(case):
    op = build(case)
    x = gaussian(2 * BATCH, *op.image_shape)
    twice = op.expand(2)
    assert len(twice) == 2 * BATCH
    torch.testing.assert_close(twice.H(x), torch.cat((op.H(x[:BATCH]), op.H(x[BATCH:]))))
    assert torch.equal(twice.s, torch.cat((op.s, op.s)))


@every_operator
def test_expand_of_one_operator_shares_its_storage(case):
    op = build(case)[:1]
    many = op.expand(5)
    assert len(many) == 5
    pairs = [(op, many)]
    if isinstance(op, ChannelProduct):
        pairs.append((op.measured, many.measured))
    for one, copies in pairs:
        for name in one.tensors:
            assert getattr(copies, name).data_ptr() == getattr(one, name).data_ptr()
            assert getattr(copies, name).stride(0) == 0
    x = gaussian(5, *op.image_shape)
    torch.testing.assert_close(many.H(x), op.H(x[None])[0])


@every_operator
def test_to_float64(case):
    short = build(case, torch.float32)
    op = short.to(torch.float64)
    x, y = images(op), data(short)
    assert op.H(x).dtype == op.H_pinv(y.double()).dtype == op.s.dtype == torch.float64
    torch.testing.assert_close(op.H(x).float(), short.H(x.float()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        op.H_pinv(y.double(), 0.1).float(), short.H_pinv(y, 0.1), rtol=1e-4, atol=1e-4
    )
    assert op.rows.dtype == torch.bool and torch.equal(op.rows, short.rows)
    assert short.s.dtype == torch.float32  # a copy was moved


@every_operator
def test_gradients(case):
    op = build(case)[:2]
    x, y = images(op).requires_grad_(), data(op).requires_grad_()
    for fn in (op.H_adjoint, op.H_pinv, lambda y: op.H_pinv(y, LEVELS[:2]), op.clean):
        assert torch.autograd.gradcheck(fn, y, fast_mode=True)
    assert torch.autograd.gradcheck(op.H, x, fast_mode=True)
    assert torch.autograd.gradcheck(op.project, (x, y), fast_mode=True)
    (gradient,) = torch.autograd.grad(op.H(x), x, y.detach())
    torch.testing.assert_close(gradient, op.H_adjoint(y.detach()), rtol=0, atol=1e-11)


@every_operator
def test_short_inputs_are_worked_on_in_float32(case):
    op = build(case, torch.float32)
    for fn, stacks in both_forms(op):
        short = [s.bfloat16() for s in stacks]
        result = fn(*short)
        assert result.dtype == torch.float32 or fn == op.project
        expected = fn(*(s.float() for s in short))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


@every_operator
@pytest.mark.parametrize("made", ["outside", "inside"])
def test_autocast_changes_nothing(case, made):
    op = build(case, torch.float32)
    expected = [fn(*stacks) for fn, stacks in both_forms(op)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        op = build(case, torch.float32) if made == "inside" else op
        results = [fn(*stacks) for fn, stacks in both_forms(op)]
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, exact, rtol=0, atol=1e-5)


# Any operator


operators = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@operators
@given(
    stride=st.integers(1, 4),
    coarse=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    shrink=st.tuples(st.integers(0, 10), st.integers(0, 10)),
    dtype=st.sampled_from(list(TOLERANCE)),
    transforms=st.booleans(),
    seed=seeds,
)
def test_any_convolution(stride, coarse, shrink, dtype, transforms, seed):
    h, w = (stride * n for n in coarse)
    kernel = gaussian(2, max(1, h - shrink[0]), max(1, w - shrink[1]), seed=seed)
    op = blur(kernel.to(dtype), stride, (2, h, w), transforms=transforms)
    check_laws(op, seed, TOLERANCE[dtype])
    full = blur(kernel, stride, (2, h, w), tol=0.0, transforms=transforms)
    x = gaussian(2, 2, h, w)
    torch.testing.assert_close(full.H(x), spatial(kernel, stride, x), rtol=0, atol=1e-10)


@operators
@given(
    rank=st.integers(0, 6),
    extra=st.integers(0, 4),
    side=st.integers(1, 4),
    zeros=st.sets(st.integers(0, 5)),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=seeds,
)
def test_any_matrix(rank, extra, side, zeros, dtype, seed):
    values = gaussian(2, rank + extra + 1, rank, seed=seed) @ gaussian(2, rank, 2 * side, seed=1)
    values[:, [i for i in zeros if i <= rank + extra]] = 0
    op = DenseMatrix(values.to(dtype), (1, 2, side))
    assert ((op.s > 0).sum(1) <= min(rank, 2 * side)).all()
    check_laws(op, seed, TOLERANCE[dtype])


@operators
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    shared=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=seeds,
)
def test_any_mask(shape, shared, dtype, seed):
    visible = gaussian(2, 1 if shared else shape[0], *shape[1:], seed=seed) > 0
    check_laws(Mask(visible.to(dtype), shape), seed, TOLERANCE[dtype])


@operators
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)).filter(
        lambda shape: math.prod(shape) % 2 == 0
    ),
    share=st.floats(0, 1),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=seeds,
)
def test_any_hadamard(shape, share, dtype, seed):
    n = math.prod(shape)
    signs = (2 * (gaussian(2, n, seed=seed) > 0) - 1).to(torch.int8)
    index = gaussian(2, n, seed=seed + 1).argsort(1)[:, : max(1, round(share * n))]
    op = BlockHadamard(signs, index, shape).to(dtype)
    check_laws(op, seed, TOLERANCE[dtype])
    y = data(op)
    torch.testing.assert_close(op.H(op.H_pinv(y)), y, rtol=0, atol=TOLERANCE[dtype])


@operators
@given(
    mixtures=st.integers(1, 4),
    channels=st.integers(1, 4),
    rank=st.integers(0, 3),
    coarse=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(0, 3),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=seeds,
)
def test_any_product_of_channels(mixtures, channels, rank, coarse, stride, dtype, seed):
    """Stride 0 stands for a mask."""
    h, w = (max(1, stride) * n for n in coarse)
    mixing = gaussian(2, mixtures, rank, seed=seed) @ gaussian(2, rank, channels, seed=1)
    if stride:
        kernel = gaussian(2, min(3, h), min(3, w), seed=seed).to(dtype)
        measured = StridedConvolution(kernel, stride, (1, h, w))
    else:
        measured = Mask((gaussian(2, 1, h, w, seed=seed) > 0).to(dtype), (1, h, w))
    op = ChannelProduct(mixing.to(dtype), measured)
    assert ((op.s > 0).sum(1) <= min(rank, mixtures, channels) * measured.s.shape[1]).all()
    check_laws(op, seed, TOLERANCE[dtype])


# The same at the size of a network's images


def checks(h, w):
    """Dense convolution taps with zeros in their spectrum, in the corner of nothing else."""
    taps = torch.zeros(BATCH, h, w, dtype=torch.float64)
    taps[:, ::2, ::2] = 1 / (h * w)
    return taps


LARGE = {
    "mask": mask((3, 64, 64), 1),
    "convolution": convolution((3, 64, 64), 4, gaussian(BATCH, 32, 32)),
    "convolution, zeros in its spectrum": convolution((3, 64, 64), 2, checks(9, 9)),
    "convolution by a matrix": convolution(
        (3, 64, 64), 8, gaussian(BATCH, 32, 32), transforms=False
    ),
    "convolution, not square": convolution((1, 36, 64), 4, gaussian(BATCH, 7, 9)),
    "matrix": rows((3, 64, 64), gaussian(BATCH, 60, 3 * 64 * 64)),
    "hadamard": lambda dtype: (large_hadamard().to(dtype), None),
    "grey and blurred": product(grey(), convolution((1, 64, 64), 2, gaussian(BATCH, 9, 9))),
}


def large_hadamard():
    n = 3 * 64 * 64
    signs = (2 * (gaussian(BATCH, n) > 0) - 1).to(torch.int8)
    return BlockHadamard(signs, gaussian(BATCH, n).argsort(1)[:, :1000], (3, 64, 64))


@pytest.mark.parametrize("shape", [(3, 40), (3, 1, 40), (3, 4, 40)])
def test_a_compiled_product_with_each_matrix(shape):
    matrix, x = gaussian(3, 7, 40, seed=1).float(), gaussian(*shape, seed=2).float()
    x.requires_grad_()
    results = []
    for call in (apply_matrix, torch.compile(apply_matrix, fullgraph=True, dynamic=False)):
        out = call(matrix, x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert results[0][0].shape == (*shape[:-1], 7)


@pytest.mark.parametrize("case", list(LARGE))
@both_precisions
def test_laws_at_64_pixels(case, dtype):
    op, plain = LARGE[case](dtype)
    check_laws(op, 0, TOLERANCE[dtype])
    if plain and not case.startswith(("convolution", "grey")):  # these drop singular values
        assert_near(op.H(images(op)), plain(images(op)), TOLERANCE[dtype])


# What is refused


@pytest.mark.parametrize(
    "kind", ["mask", "three", "convolution", "matrix", "null", "hadamard", "product"]
)
@pytest.mark.parametrize("wrong", [(3, 5, 4), (1, 4, 4), (3, 1, 1), (3, 4)])
def test_images_of_another_shape_are_refused(kind, wrong):
    shape = (3, 4, 4)
    op = {
        "mask": lambda: Mask(torch.ones(2, 1, 4, 4), shape),
        "three": lambda: Mask(torch.ones(2, 3, 4, 4), shape),
        "convolution": lambda: StridedConvolution(torch.ones(2, 1, 1), 1, shape),
        "matrix": lambda: DenseMatrix(torch.ones(2, 1, 48), shape),
        "null": lambda: NullOperator(2, shape),
        "hadamard": lambda: BlockHadamard(torch.ones(2, 48), torch.zeros(2, 1).long(), shape),
        "product": lambda: ChannelProduct(
            torch.ones(2, 1, 3), Mask(torch.ones(2, 1, 4, 4), (1, 4, 4))
        ),
    }[kind]()
    with pytest.raises(ValueError, match=r"acts on images \(3, 4, 4\), not"):
        op.H(torch.zeros(2, *wrong))


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4), (2, 2, 4, 4), (2, 3, 4, 5)])
def test_masks_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[B, 1 or 3, 4, 4\], not"):
        Mask(torch.ones(shape), (3, 4, 4))


def test_masks_that_are_not_binary_are_refused():
    with pytest.raises(ValueError, match=r"0 \(hidden\) and 1 \(visible\) only"):
        Mask(torch.full((1, 1, 4, 4), 0.5))


def test_masks_may_be_of_any_type():
    visible = gaussian(2, 1, 4, 4) > 0
    x = gaussian(2, 3, 4, 4)
    for values in (visible, visible.long(), visible.float()):
        assert torch.equal(Mask(values).H(x), (x * visible).flatten(1))


@pytest.mark.parametrize("stride", [0, 3, 8])
def test_strides_that_do_not_divide_the_image_are_refused(stride):
    with pytest.raises(ValueError, match=f"stride {stride} does not divide both sides .* 4×8"):
        StridedConvolution(torch.ones(1, 1, 1), stride, (1, 4, 8))


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 3, 3), (1, 5, 3), (1, 3, 9)])
def test_kernels_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"kernels must be .* kh ≤ 4, kw ≤ 8, not"):
        StridedConvolution(torch.ones(shape), 1, (1, 4, 8))


@pytest.mark.parametrize("shape", [(2, 48), (1, 2, 47), (1, 1, 2, 48)])
def test_matrices_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[B, M, 48\], not"):
        DenseMatrix(torch.ones(shape), (3, 4, 4))


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"images of one channel, but Mask measures .*\(3, 4, 4\)"):
        ChannelProduct(torch.ones(2, 1, 3), Mask(torch.ones(2, 1, 4, 4)))
    with pytest.raises(ValueError, match="ValidRegion does not have"):
        ChannelProduct(torch.ones(1, 1, 3), ValidRegion(torch.ones(1, 2, 2), 1, (1, 4, 4)))
    one = Mask(torch.ones(2, 1, 4, 4), (1, 4, 4))
    for shape in ((1, 1, 3), (1, 3), (2, 1, 3, 3)):
        with pytest.raises(ValueError, match=r"mixing must be \[2, m, C\]"):
            ChannelProduct(torch.ones(shape), one)


def test_hadamard_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"even number of values, not \(3, 3, 5\)"):
        BlockHadamard(torch.ones(1, 45), torch.zeros(1, 2).long(), (3, 3, 5))
    for signs, index in (((2, 47), (2, 3)), ((2, 48), (1, 3)), ((2, 48), (2, 3, 1))):
        with pytest.raises(ValueError, match=r"signs must be \[B, 48\] and rows \[B, M\]"):
            BlockHadamard(torch.ones(signs), torch.zeros(index).long(), (3, 4, 4))


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


def test_a_matrix_keeps_its_values_when_the_callers_change():
    W = gaussian(1, 3, 48, dtype=torch.float32)
    op, x = DenseMatrix(W, (3, 4, 4)), gaussian(1, 3, 4, 4, dtype=torch.float32)
    before = op.H(x)
    W *= 2
    assert torch.equal(op.H(x), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_refused(value):
    W = gaussian(1, 3, 48, dtype=torch.float32)
    W[0, 1, 7] = value
    with pytest.raises(ValueError, match="finite"):
        DenseMatrix(W, (3, 4, 4))


def test_images_in_float64_meet_operators_in_float32():
    x = gaussian(1, 3, 8, 8)
    kernel = torch.ones(1, 3, 3) / 9
    for op in (
        DenseMatrix(gaussian(1, 5, 192, dtype=torch.float32), (3, 8, 8)),
        ChannelProduct(torch.ones(1, 1, 3), Mask(torch.ones(1, 1, 8, 8), (1, 8, 8))),
        ValidConvolution(kernel, 1, (3, 8, 8)),
        StridedConvolution(kernel, 2, (3, 8, 8)),
    ):
        y = op.H(x)
        assert y.dtype == torch.float64
        assert op.H_pinv(y).dtype == torch.float64
        torch.testing.assert_close(op.H(x.float()), y.float(), rtol=1e-5, atol=1e-5)


def test_constants_made_in_inference_mode_serve_training_later():
    from degradation import hadamard

    hadamard._hadamard.cache_clear()
    denoiser = Denoiser(make_config("tiny"))
    task, image = Problem.without_measurement(1, (3, 16, 16)), torch.ones(1, 3, 16, 16)
    with torch.inference_mode():
        denoiser(image, 1.0, task)
        hadamard.walsh_hadamard(torch.ones(1, 8))
    x = torch.ones(1, 1, 8, 8, requires_grad=True)
    hadamard.walsh_hadamard(x.flatten(1)).sum().backward()
    denoiser(image, 1.0, Problem.without_measurement(1, (3, 16, 16))).sum().backward()
    assert x.grad.isfinite().all()


def test_the_pseudo_inverse_of_a_small_blur_divides_by_s_once() -> None:
    """In float32 Hx = y holds to rounding times s_max/s_min (at most 50), not its square."""
    operator = MotionBlur().sample((3, 32, 32), 4, range(64))
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = operator.H(x)
    for restored in (operator.H_pinv(y), operator.V(operator.Vt(x))):
        assert (operator.H(restored) - y).abs().max() < 50 * torch.finfo(y.dtype).eps
