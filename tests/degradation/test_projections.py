"""Compressed sensing by Hadamard rows, and grey images."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from helpers import gaussian
from PIL import Image

from degradation import (
    BlockHadamard,
    Colourisation,
    Hadamard,
    MatrixDegradation,
    MissingPatches,
    MotionBlur,
    NoDegradation,
    RandomDegradation,
    StridedConvolution,
)
from degradation.hadamard import walsh_hadamard


@pytest.mark.parametrize("k", [0, 1, 3, 6, 7, 11])
def test_the_transform_is_that_of_the_hadamard_matrix(k):
    x = gaussian(2, 3, 2**k)
    expected = x @ torch.from_numpy(scipy.linalg.hadamard(2**k)).double() / 2 ** (k / 2)
    torch.testing.assert_close(walsh_hadamard(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "block"),
    [((3, 256, 256), 2**16), ((3, 64, 64), 2**12), ((3, 12, 20), 16), ((1, 6, 5), 2)],
)
def test_blocks_divide_any_image(shape, block):
    n = math.prod(shape)
    op = Hadamard(0.1).sample(shape, None, [0, 1])
    assert op.block == block and op.rows.shape == (2, round(0.1 * n)) and op.rows.all()
    x = gaussian(2, *shape).float()
    y = op.H(x)
    inverse = op.H_pinv(y)
    torch.testing.assert_close(op.H(inverse), y, rtol=0, atol=2e-6)
    ratio = y.square().sum() / x.square().sum()  # random rows see their share of the energy
    assert abs(ratio - len(y[0]) / n) < 5 * math.sqrt(2 / y.numel())


def test_every_row_is_the_whole_image():
    op = Hadamard(1.0).sample((3, 8, 8), None, [4])
    x = gaussian(1, 3, 8, 8).float()
    torch.testing.assert_close(op.H_pinv(op.H(x)), x, rtol=0, atol=1e-5)


def test_signs_are_fair_and_rows_uniform():
    op = Hadamard(0.25).sample((1, 16, 16), None, range(400))
    assert op.signs.dtype == torch.int8 and op.signs.abs().eq(1).all()
    assert abs(op.signs.float().mean()) < 4.5 / math.sqrt(op.signs.numel())
    assert (op.index.diff(dim=1) > 0).all()  # each row once
    counts = torch.bincount(op.index.flatten(), minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert op.index.unique(dim=0).shape[0] == op.signs.unique(dim=0).shape[0] == 400


def test_memory_is_signs_and_indices():
    op = Hadamard(0.1).sample((3, 256, 256), None, [0])
    stored = sum(getattr(op, name).nbytes for name in op.tensors)
    assert stored < 2 * 3 * 256 * 256


@pytest.mark.parametrize(
    ("weights", "shape", "expected"),
    [
        ("mean", (3, 4, 6), [1 / 3, 1 / 3, 1 / 3]),
        ("mean", (1, 4, 6), [1.0]),
        ("mean", (4, 4, 6), [0.25] * 4),
        ("luma", (3, 4, 6), [0.299, 0.587, 0.114]),
    ],
)
def test_grey_is_a_weighted_mean_of_the_channels(weights, shape, expected):
    op = Colourisation(weights).sample(shape, None, [0, 1])
    x = gaussian(2, *shape).float()
    grey = torch.einsum("c,bchw->bhw", torch.tensor(expected), x)
    torch.testing.assert_close(op.H(x), grey.flatten(1), rtol=0, atol=1e-6)
    assert torch.equal(op.measurement_image(op.H(x))[:, 0].flatten(1), op.H(x))
    torch.testing.assert_close(op.s, torch.full_like(op.s, math.hypot(*expected)))


@pytest.mark.parametrize(
    "family", [MissingPatches(), MotionBlur(), MatrixDegradation(), NoDegradation(),
               Hadamard(), RandomDegradation(), Colourisation()], ids=lambda f: type(f).__name__
)  # fmt: skip
def test_the_grey_image_is_measured_by_another_family(family):
    shape, seeds = (3, 16, 16), [1, 2]
    both, x = Colourisation(of=family), gaussian(2, 3, 16, 16).float()
    assert both.structures() == family.structures()
    assert [both.structure(i) for i in range(9)] == [family.structure(i) for i in range(9)]
    for structure in both.structures():
        alone = family.sample((1, 16, 16), structure, seeds)
        op = both.sample(shape, structure, seeds)
        grey = x.mean(1, keepdim=True)
        torch.testing.assert_close(op.H(x), alone.H(grey), rtol=0, atol=1e-5)
        assert torch.equal(op.rows, alone.rows)


def test_luma_is_the_grey_of_pillow():
    pixels = gaussian(1, 3, 8, 8).mul(60).add(128).clamp(0, 255).to(torch.uint8)
    grey = np.array(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).convert("L"))
    op = Colourisation("luma").sample((3, 8, 8), None, [0])
    ours = op.measurement_image(op.H(pixels.float()))[0, 0]
    assert (ours - torch.from_numpy(grey.astype("float32"))).abs().max() < 0.6


def test_grey_and_blurred_stays_one_small_operator():
    op = Colourisation(of=MotionBlur()).sample((3, 16, 16), 4, [0, 1])
    assert isinstance(op.measured, StridedConvolution) and op.s.shape == (2, 16)
    assert isinstance(Colourisation(of=Hadamard()).sample((3, 8, 8), None, [0]).measured,
                      BlockHadamard)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Hadamard(0.0), r"ratio must lie in \(0, 1\], not 0.0"),
        (lambda: Hadamard(1.5), "not 1.5"),
        (lambda: Hadamard().check((3, 5, 5)), "even number of values"),
        (lambda: Colourisation("green"), "weights must be mean or luma, not green"),
        (lambda: Colourisation("luma").check((1, 8, 8)), "images of 3 channels, not 1"),
        (lambda: Colourisation(of=MotionBlur()).check((3, 12, 12)), "stride 8 does not divide"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
