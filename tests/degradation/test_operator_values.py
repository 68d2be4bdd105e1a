"""Values and shapes from which no operator is made."""

import math

import pytest
import torch
from helpers import (
    gaussian,
)

from degradation import (
    BlockHadamard,
    ChannelProduct,
    DenseMatrix,
    Mask,
    NullOperator,
    StridedConvolution,
    ValidRegion,
)

# What is refused


@pytest.mark.parametrize(
    "kind", ["mask", "three", "convolution", "matrix", "null", "hadamard", "product"]
)
@pytest.mark.parametrize("wrong", [(1, 4, 4), (3, 4)])
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


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 4), r"must be \[B, 1 or 3, 4, 4\], not"),
        ((2, 2, 4, 4), r"must be \[B, 1 or 3, 4, 4\], not"),
        ((2, 3, 4, 5), "has 4×5 pixels .* the images have 4×4"),
    ],
)
def test_masks_of_a_wrong_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
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


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 3, 3), r"must be \[B, kh, kw\]"), ((1, 5, 3), "5×3 pixels is larger .* of 4×8")],
)
def test_kernels_of_a_wrong_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        StridedConvolution(torch.ones(shape), 1, (1, 4, 8))


@pytest.mark.parametrize("shape", [(2, 48), (1, 2, 47)])
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_refused(value):
    W = gaussian(1, 3, 48, dtype=torch.float32)
    W[0, 1, 7] = value
    with pytest.raises(ValueError, match="finite"):
        DenseMatrix(W, (3, 4, 4))
