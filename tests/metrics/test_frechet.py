"""The Fréchet distance against closed forms, scipy's matrix root and recorded values.

`test_recorded_values` compares with recorded values of an independent implementation, and is
skipped without them; `test_matches_the_root_of_the_product` checks the same by scipy's root.
"""

import pytest
import scipy.linalg
import torch
from helpers import gaussian

from metrics.distances import frechet_distance


def covariance(d, rank, seed):
    factor = gaussian(d, rank, seed=seed)
    return factor @ factor.mT / rank


@pytest.mark.parametrize("name", ["dim16", "dim64", "dim64_rank_deficient"])
def test_recorded_values(golden, name):
    case = golden("metrics")["fid"][name]
    distance = frechet_distance(case["mu1"], case["sigma1"], case["mu2"], case["sigma2"])
    # scipy's root of a singular product is accurate to the root of the rounding error only.
    tol = 1e-5 if "deficient" in name else 1e-10
    assert distance == pytest.approx(case["fid"], rel=tol)


@pytest.mark.parametrize("d", [1, 5, 40])
def test_matches_the_root_of_the_product(d):
    cov1, cov2 = covariance(d, 3 * d, 1), covariance(d, 3 * d, 2)
    mean1, mean2 = gaussian(d, seed=3), gaussian(d, seed=4)
    root = scipy.linalg.sqrtm((cov1 @ cov2).numpy()).real.trace()
    expected = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected.item(), rel=1e-9)


def test_commuting_covariances_have_a_closed_form():
    scale1, scale2 = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 9.0])
    q, _ = torch.linalg.qr(gaussian(3, 3))
    cov1, cov2 = ((q * s) @ q.mT for s in (scale1.double(), scale2.double()))
    mean = torch.zeros(3)
    expected = 1 + 0 + 9  # (2 − 1)² + (1 − 1)² + (0 − 3)²
    assert frechet_distance(mean, cov1, mean, cov2) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(mean, cov1, mean + 2, cov2) == pytest.approx(expected + 12, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 7, 60])
def test_equal_distributions_are_at_no_distance(rank):
    mean, cov = gaussian(60), 1e3 * covariance(60, rank, 1)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-13 * cov.trace()


def test_singular_covariances_are_exact():
    """Of rank one, (Σ₁Σ₂)^{1/2} has the trace |aᵀb|; two points have only their distance."""
    a, b = gaussian(300, seed=1), gaussian(300, seed=2)
    mean = torch.zeros(300)
    expected = a @ a + b @ b - 2 * (a @ b).abs()
    distance = frechet_distance(mean, torch.outer(a, a), mean, torch.outer(b, b))
    assert distance == pytest.approx(expected.item(), rel=1e-11)
    zero = torch.zeros(300, 300)
    assert frechet_distance(a, zero, b, zero) == pytest.approx((a - b).square().sum().item())


def test_symmetric_and_float64_from_float32():
    one = gaussian(20, seed=1, dtype=torch.float32), covariance(20, 9, 2).float()
    two = gaussian(20, seed=3, dtype=torch.float32), covariance(20, 50, 4).float()
    there, back = frechet_distance(*one, *two), frechet_distance(*two, *one)
    assert there == pytest.approx(back, rel=1e-12)
    assert there == frechet_distance(*(t.double() for t in (*one, *two)))
