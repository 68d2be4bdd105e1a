"""Masks: which pixels are visible, and how often."""

import math

import pytest
import scipy.stats
import torch
from helpers import gaussian

from degradation import CentreBox, FixedMask, HalfImage, RandomPixels


def masks(family, shape, seeds):
    """Bool `[B, h, w]`."""
    return family.sample(shape, None, seeds).mask[:, 0].bool()


def test_pixels_are_visible_with_the_probability_of_their_image():
    mask = masks(RandomPixels((0.3,)), (3, 32, 32), range(300))
    counts = mask.flatten(1).sum(1).numpy()
    assert scipy.stats.kstest(counts, scipy.stats.binom(1024, 0.3).cdf).statistic < 0.1
    place = mask.float().mean(0)
    assert (place - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 300)
    shares = masks(RandomPixels((0.1, 0.9)), (3, 32, 32), range(1000)).float().mean((1, 2))
    assert scipy.stats.kstest((shares.numpy() - 0.1) / 0.8, "uniform").statistic < 0.06


@pytest.mark.parametrize("visible", [1e-9, 1 - 1e-7])
def test_some_pixel_is_visible_and_some_is_hidden(visible):
    mask = masks(RandomPixels((visible,)), (3, 6, 5), range(200))
    count = 1 if visible < 0.5 else 29
    assert (mask.flatten(1).sum(1) == count).all()
    assert mask.flatten(1).float().argmax(1).unique().numel() > 10 or count > 1


@pytest.mark.parametrize(
    ("share", "size", "box"), [(0.5, (8, 12), (2, 6, 3, 9)), (0.25, (9, 7), (3, 5, 2, 4)),
                               (0.01, (5, 5), (2, 3, 2, 3)), (0.9, (4, 30), (0, 4, 1, 28))]
)  # fmt: skip
def test_the_box_is_in_the_middle(share, size, box):
    top, bottom, left, right = box
    expected = torch.ones(2, *size, dtype=torch.bool)
    expected[:, top:bottom, left:right] = False
    assert torch.equal(masks(CentreBox(share), (3, *size), [0, 1]), expected)


def test_a_half_is_missing():
    for side, index in {
        "left": (slice(None), slice(0, 3)), "right": (slice(None), slice(4, 7)),
        "top": (slice(0, 4),), "bottom": (slice(4, 8),),
    }.items():  # fmt: skip
        expected = torch.ones(8, 7, dtype=torch.bool)
        expected[index] = False
        assert torch.equal(masks(HalfImage(side), (3, 8, 7), [5])[0], expected)


def test_the_missing_half_is_uniform():
    mask = masks(HalfImage(), (1, 4, 4), range(800))
    kinds = [masks(HalfImage(s), (1, 4, 4), [0]) for s in ("left", "right", "top", "bottom")]
    counts = [int((mask == kind).all((1, 2)).sum()) for kind in kinds]
    assert sum(counts) == 800 and scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_a_given_mask_is_every_operator(channels):
    mask = gaussian(channels, 4, 6) > 0
    op = FixedMask(mask).sample((3, 4, 6), None, [1, 2])
    x = gaussian(2, 3, 4, 6).float()
    assert torch.equal(op.H(x), (x * mask).flatten(1))
    assert op.mask.stride(0) == 0  # stored once


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RandomPixels((0.0, 0.5)), r"visible must be one number or two .* in \(0, 1\)"),
        (lambda: RandomPixels((0.5, 1.0)), r"not \(0.5, 1.0\)"),
        (lambda: RandomPixels((0.6, 0.5)), "that ascend"),
        (lambda: RandomPixels().check((3, 1, 1)), "one pixel"),
        (lambda: CentreBox(0.0), r"share must lie in \(0, 1\), not 0.0"),
        (lambda: CentreBox(1.0), "share must lie"),
        (lambda: CentreBox(math.nan), "share must lie"),
        (lambda: CentreBox(0.9).check((3, 2, 2)), "share=0.9 hides all of an image of 2×2"),
        (lambda: HalfImage("middle"), "side must be left, right, top, bottom or random, not mid"),
        (lambda: HalfImage().check((3, 1, 8)), "1×8 has no halves"),
        (lambda: FixedMask(torch.zeros(1, 4, 4)), "mask is zero everywhere"),
        (lambda: FixedMask(torch.ones(1, 4, 4)).check((3, 8, 8)), "the mask has 4×4 pixels"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_families_of_tensors_equal_themselves_alone():
    one, two = (FixedMask(torch.ones(1, 4, 4, dtype=torch.bool)) for _ in range(2))
    assert one == one and one != two and len({one, two}) == 2
    assert CentreBox() == CentreBox() and hash(CentreBox()) == hash(CentreBox())
