"""The sliced Wasserstein distance."""

import math

import pytest
import scipy.stats
import torch
from helpers import gaussian

from metrics.distances import sliced_wasserstein


def test_on_a_line_it_is_the_distance_of_scipy():
    a, b = gaussian(200, 1), 2 * gaussian(200, 1, seed=1) + 1
    expected = scipy.stats.wasserstein_distance(a[:, 0], b[:, 0])
    assert sliced_wasserstein(a, b) == pytest.approx(expected)


@pytest.mark.parametrize("d", [2, 10])
def test_a_shift_counts_by_its_mean_projection(d):
    """E|θ₁| = Γ(d/2)/(√π·Γ((d + 1)/2)) for θ uniform on the sphere."""
    a = gaussian(50, d)
    shift = torch.zeros(d, dtype=torch.float64)
    shift[0] = 3
    mean = math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    assert sliced_wasserstein(a, a + shift, 5000) == pytest.approx(3 * mean, rel=0.03)


def test_sets_not_their_order_count():
    a = gaussian(50, 3)
    assert sliced_wasserstein(a, a.flip(0)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(a, a[torch.arange(50) % 25]) > 0.01
