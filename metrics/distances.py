"""Distances of two sets: Fréchet's, the kernel distance, the sliced Wasserstein distance.

The first two run in float64 on the CPU: a value does not depend on where features were gathered.
"""

import torch
from torch import Tensor

from degradation import Draws

_SLACK = 1e-4  # of the largest value: a covariance may have been computed in float32
_ROWS = 1000  # of the kernel matrix at once


def frechet_distance(
    mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, *, root2: Tensor | None = None
) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^{1/2}), at least 0: the squared Fréchet distance of two
    Gaussians (Dowson and Landau 1982; Heusel et al. 2017 for images).

    mean: `[d]`; cov: `[d, d]`, symmetric and positive semi-definite, singular if need be; root2:
    `square_root(cov2)`, if it is known already. All are finite.

    tr(Σ₁Σ₂)^{1/2} is the nuclear norm of FᵀΣ₂^{1/2} for any F with FFᵀ = Σ₁: no root of a matrix
    that is not symmetric, hence no complex numbers and no trouble where Σ₁Σ₂ is singular. F has
    as many columns as the rank of Σ₁, few for few images.
    """
    mean1, cov1, mean2, cov2 = (t.detach().cpu().double() for t in (mean1, cov1, mean2, cov2))
    root2 = square_root(cov2) if root2 is None else root2
    factor, _ = _factor(cov1)
    fidelity = torch.linalg.svdvals(factor.mT @ root2).sum()
    spread = cov1.trace() + cov2.trace() - 2 * fidelity
    # Both terms are never negative; rounding can make the second one so.
    return ((mean1 - mean2).square().sum() + spread.clamp(min=0)).item()


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric positive semi-definite square root, `[d, d]`, float64 on the CPU.

    Raises ValueError for a matrix that is not symmetric, or has negative eigenvalues, beyond what
    float32 rounds away.
    """
    factor, vectors = _factor(covariance)
    return factor @ vectors.mT


def _factor(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """F = VΛ^{1/2} with FFᵀ = covariance, and the eigenvectors V, `[d, rank]`. Raises ValueError.

    Eigenvalues below the rounding error of the largest are taken for 0: a singular covariance has
    them, of either sign, and their roots would be 10⁸ times as large.
    """
    covariance = covariance.detach().cpu().double()
    if (covariance - covariance.mT).abs().max() > _SLACK * covariance.abs().max():
        raise ValueError("is not symmetric")
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    if values[0] < -_SLACK * values.abs().max():
        raise ValueError(f"has a negative eigenvalue, {values[0]:.3g}")
    kept = values > len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return vectors[:, kept] * values[kept].sqrt(), vectors[:, kept]


def kernel_distance(x: Tensor, y: Tensor, *, within_y: float | None = None) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy (MMD) of features `[n, d]` and
    `[m, d]`; n and m are at least 2. within_y: `within(y)`, if it is known already.

    The kernel is (a·b / d + 1)³; with the features of Inception this is KID (Bińkowski et al.,
    "Demystifying MMD GANs", 2018). All pairs of different images count (the U-statistic), where the
    paper and torch-fidelity average over random subsets of 1000: the expectation is the same, the
    variance is smaller, and nothing is random. It can be below 0.
    """
    second = within(y) if within_y is None else within_y
    return within(x) + second - 2 * _total(x, y) / (len(x) * len(y))


def within(x: Tensor) -> float:
    """The mean kernel of two different images of a set `[n, d]`."""
    own = (x.double().square().mean(1) + 1).pow(3).sum().item()
    return (_total(x, x) - own) / (len(x) * (len(x) - 1))


def _total(x: Tensor, y: Tensor) -> float:
    x, y = x.cpu().double(), y.cpu().double()
    parts = [(rows @ y.mT / x.shape[1] + 1).pow(3).sum() for rows in x.split(_ROWS)]
    return torch.stack(parts).sum().item()


def sliced_wasserstein(a: Tensor, b: Tensor, slices: int = 500) -> float:
    """The mean over random directions of the 1-Wasserstein distance of two sets `[n, D]`.

    Projected onto a line, that is the mean distance of the samples in their order (Bonneel et al.,
    "Sliced and Radon Wasserstein barycenters of measures", 2015, with p = 1). The directions are
    the same in every call. Raises ValueError for sets of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"two sets of one shape are needed, not {[*a.shape]} and {[*b.shape]}")
    directions = Draws(range(slices)).normal(a.shape[1:], "directions").to(a)
    directions = directions / directions.norm(dim=1, keepdim=True)
    first, second = ((x @ directions.mT).sort(0).values for x in (a, b))
    return (first - second).abs().mean().item()
