"""The laws of operators, for any sizes and values, and at the size of a network's images."""

import math

import pytest
import torch
from helpers import (
    assert_near,
    check_laws,
    data,
    gaussian,
    images,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import (
    BATCH,
    TOLERANCE,
    blur,
    both_precisions,
    convolution,
    grey,
    mask,
    product,
    rows,
    spatial,
)

from degradation import (
    BlockHadamard,
    ChannelProduct,
    DenseMatrix,
    Mask,
    StridedConvolution,
)

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


@pytest.mark.parametrize("case", list(LARGE))
@both_precisions
def test_laws_at_64_pixels(case, dtype):
    op, plain = LARGE[case](dtype)
    check_laws(op, 0, TOLERANCE[dtype])
    if plain and not case.startswith(("convolution", "grey")):  # these drop singular values
        assert_near(op.H(images(op)), plain(images(op)), TOLERANCE[dtype])
