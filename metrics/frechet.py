"""The Fréchet distance between two Gaussians, given by their means and covariances.

‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^{1/2}) (Dowson and Landau 1982; Heusel et al. 2017 for images).
"""

import torch
from torch import Tensor

_SLACK = 1e-4  # of the largest value: a covariance may have been computed in float32


def frechet_distance(
    mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, *, root2: Tensor | None = None
) -> float:
    """The squared Fréchet distance of two Gaussians, at least 0, in float64.

    mean: `[d]`; cov: `[d, d]`, symmetric and positive semi-definite, singular if need be; root2:
    `square_root(cov2)`, if it is known already. All are finite.

    tr(Σ₁Σ₂)^{1/2} is the nuclear norm of FᵀΣ₂^{1/2} for any F with FFᵀ = Σ₁: no root of a matrix
    that is not symmetric, hence no complex numbers and no trouble where Σ₁Σ₂ is singular. F has
    as many columns as the rank of Σ₁, few for few images. The decompositions run on the CPU, so
    that the value does not depend on where the statistics were gathered.
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
    rounding = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    kept = values > rounding
    return vectors[:, kept] * values[kept].sqrt(), vectors[:, kept]
