"""Pixel metrics against scikit-image and values worked out by hand.

The tests that use `recorded` compare with recorded values of an independent implementation, and
are skipped without them; `test_psnr_of_a_known_error` and
`test_consistency_counts_existing_rows_only` check the same by hand.
"""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from metrics.pixel import consistency, psnr, ssim, to_uint8


@pytest.fixture
def recorded(golden):
    return golden("metrics")


class Rows:
    """A degradation that measures the first pixels as they are; `rows` says which exist."""

    def __init__(self, rows):
        self.rows = rows

    def H(self, x):
        return x.flatten(1)[:, : self.rows.shape[1]]


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def smooth_pair(seed=0):
    """Two related images [2, 3, 40, 52], neither flat nor pure noise."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(2, 3, 40, 52)).cumsum(2).cumsum(3)
    a = 127 + 110 * a / np.abs(a).max()
    b = a * 0.9 + 15 * rng.normal(size=a.shape)
    return [torch.from_numpy(v.clip(0, 255).astype(np.uint8)) for v in (a, b)]


def test_uint8_round_trip_of_every_level():
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))


def test_uint8_rounds_and_clips():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.49 / 127.5, -0.49 / 127.5, 1.49 / 127.5, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 128, 127, 129, 255, 255]
    assert to_uint8(x).dtype == torch.uint8


def test_psnr_agrees_with_the_reference(recorded):
    value = psnr(recorded["img_a"], recorded["img_b"])
    torch.testing.assert_close(value.float(), recorded["psnr"], rtol=1e-6, atol=1e-5)


def test_psnr_of_a_known_error():
    a = torch.full((2, 3, 5, 7), 100, dtype=torch.uint8)
    b = a.clone()
    b[0] = 90  # differences of uint8 would wrap around
    b[1, 0] = 130
    expected = [10 * math.log10(255**2 / 100), 10 * math.log10(255**2 / 300)]
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-12)
    assert psnr(b, a).tolist() == pytest.approx(expected, rel=1e-12)
    assert psnr(a, b).dtype == torch.float64


def test_psnr_of_an_exact_match_is_infinite():
    a = images(2, 3, 8, 8)
    b = a.clone()
    b[1, 0, 0, 0] ^= 1
    assert psnr(a, b).isinf().tolist() == [True, False]


def test_ssim_agrees_with_scikit_image():
    a, b = smooth_pair()
    expected = [
        structural_similarity(
            a[i].numpy(),
            b[i].numpy(),
            channel_axis=0,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for i in range(2)
    ]
    assert 0.2 < min(expected) < max(expected) < 0.95
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_noise_agrees_with_scikit_image_window_by_window():
    """Also in the corner of the map, so that the valid region is the same one."""
    a, b = images(1, 1, 11, 11, seed=1), images(1, 1, 11, 11, seed=2)
    _, full = structural_similarity(
        a[0, 0].numpy(),
        b[0, 0].numpy(),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert ssim(a, b).item() == pytest.approx(full[5, 5], abs=1e-9)


def test_ssim_is_one_for_equal_images_and_symmetric():
    a, b = smooth_pair(1)
    assert ssim(a, a).tolist() == pytest.approx([1, 1], abs=1e-12)
    assert ssim(a, b).tolist() == pytest.approx(ssim(b, a).tolist(), abs=1e-12)


def test_ssim_of_flat_images_is_its_luminance_term():
    a = torch.full((1, 3, 16, 16), 50, dtype=torch.uint8)
    b = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    c1 = 2.55**2
    expected = (2 * 50 * 200 + c1) / (50**2 + 200**2 + c1)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-9)


def test_ssim_refuses_images_below_its_window():
    with pytest.raises(ValueError, match="11×11"):
        ssim(images(1, 3, 10, 32), images(1, 3, 10, 32))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_refuse_what_are_not_pairs_of_uint8_images(metric):
    a = images(2, 3, 16, 16)
    with pytest.raises(ValueError, match="to_uint8"):
        metric(a.float(), a)
    with pytest.raises(ValueError, match="equal shape"):
        metric(a, a[:1])
    with pytest.raises(ValueError, match="equal shape"):
        metric(a[0], a[0])


def test_consistency_agrees_with_the_reference(recorded):
    """The reference sums over the measurement where we take the mean."""
    y_a, y_b = recorded["y_a"].flatten(1), recorded["y_b"].flatten(1)
    degradation = Rows(torch.ones_like(y_a, dtype=torch.bool))
    value = consistency(degradation, y_a, y_b) * y_a.shape[1]
    torch.testing.assert_close(value.float(), recorded["consistency"], rtol=1e-5, atol=1e-6)


def test_consistency_counts_existing_rows_only():
    x = torch.zeros(3, 1, 2, 3)
    y = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    y[0, 3] = math.nan
    rows = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    value = consistency(Rows(rows), x, y)
    assert value.tolist() == pytest.approx([2.5, 7.5, 0.0])
    assert value.dtype == torch.float64


def test_consistency_is_of_the_image_given():
    x = torch.tensor([[0.5, -0.25], [0.0, 1.0]]).view(2, 1, 1, 2)
    y = torch.tensor([[0.5, 0.25], [1.0, 1.0]])
    value = consistency(Rows(torch.ones(2, 2, dtype=torch.bool)), x, y)
    assert value.tolist() == pytest.approx([0.125, 0.5])
