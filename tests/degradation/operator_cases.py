"""Operators of every class at small sizes, each with the plain form of H that it must have."""

import math
from collections.abc import Callable

import pytest
import scipy.linalg
import torch
from helpers import (
    data,
    gaussian,
    images,
    precision,
)
from torch import Tensor

from degradation import (
    BlockHadamard,
    ChannelProduct,
    DenseMatrix,
    LinearOperator,
    Mask,
    NullOperator,
    StridedConvolution,
    ValidConvolution,
)

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
        (op.Vt, [x]),
        (op.V, [z]),
        (op.Ut, [y]),
        (op.U, [z]),
    ]
