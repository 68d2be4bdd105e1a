"""The fast operators against the plainest forms of them."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_near, gaussian

from benchmarks.reference_path import PlainBlur, PlainMask, PlainMatrix
from degradation import Mask, MatrixDegradation, MissingPatches, StridedConvolution

SHAPE = (3, 16, 8)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_blur_on_the_doubled_grid(stride):
    """On a zero-padded image the coefficients are the spectrum of our measurement."""
    kernel = gaussian(2, 5, 4, seed=1, dtype=torch.float32)
    x = gaussian(2, 3, *SHAPE, seed=2, dtype=torch.float32)
    plain, doubled = PlainBlur(kernel, stride, SHAPE), (3, 32, 16)
    ours = StridedConvolution(kernel, stride, doubled, tol=0.0)
    y = ours.H(F.pad(x, (0, 8, 0, 16))).unflatten(-1, (3, 32 // stride, 16 // stride))
    coefficients = torch.view_as_real(torch.fft.fft2(y)).flatten(2)
    assert_near(plain.H(x), coefficients, 1e-5)
    restored = ours.H_pinv(y.flatten(2))[..., :16, :8]
    assert_near(plain.H_pinv(plain.H(x)), restored, 1e-3)


def test_matrix():
    ours = MatrixDegradation(2, 20).sample(SHAPE, None, range(4))
    x = gaussian(4, 3, *SHAPE, seed=2, dtype=torch.float32)
    basis = torch.eye(384).view(1, 384, *SHAPE).expand(4, -1, -1, -1, -1)
    plain = PlainMatrix(ours.H(basis).mT.contiguous(), SHAPE)
    assert_near(ours.H(x), plain.H(x), 1e-5)
    y = plain.H(x)
    assert_near(ours.H_pinv(y), plain.H_pinv(y), 1e-5)


def test_mask():
    mask = MissingPatches(0.5).sample(SHAPE, None, range(4)).mask
    ours, plain = Mask(mask, SHAPE), PlainMask(mask, SHAPE)
    x = gaussian(4, 3, *SHAPE, seed=2, dtype=torch.float32)
    assert torch.equal(ours.H(x), plain.H(x))
    assert torch.equal(ours.H_pinv(ours.H(x)), plain.H_pinv(plain.H(x)))
