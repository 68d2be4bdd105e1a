"""The exact posterior of a Gaussian mixture, given a linear measurement with noise or without.

For x = μ + Le with e ~ N(0, I) and Σ = LLᵀ, measured in the spectral coordinates of H, the
measurement is v = We + σn with W = diag(s)VᵀL and v = Uᵀy − diag(s)Vᵀμ. The thin SVD
W = P diag(t) Rᵀ makes this one equation for each coordinate of Rᵀe. Nothing is inverted that can be
singular: without noise the measured directions are known, and their variance is 0.
"""

import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from degradation import Diagonalisable, Problem, diagonalisable
from networks.analytic import GaussianMixture

_ROUNDING = 1e-12  # of the sum of all t: below it a direction was not measured
_DEGENERATE = 1e-9  # of the sum of all s: standard deviation of a value that must be what it is


def posterior(prior: GaussianMixture, problem: Problem) -> GaussianMixture:
    """p(x0 | y) for each problem: B mixtures of as many components.

    The prior is one mixture, or one for each problem: a posterior can be measured again. Without
    noise, y is taken to lie in the range of H; components that cannot explain it get no weight.
    Takes an SVD of D×D for each problem and covariance. Raises ValueError without an SVD of H.
    """
    parts = [_condition(*pair) for pair in _pairs(prior, problem)]
    log_weights, means, variances, basis = (torch.cat(of) for of in zip(*parts, strict=True))
    return GaussianMixture(log_weights, means, variances, basis, prior.image_shape)


def posterior_mean(prior: GaussianMixture, problem: Problem) -> Tensor:
    """E[x0 | y] `[B, C, h, w]` in the type of y: Σ_k of w_k(y) times the linear estimates
    μ_k + Σ_kHᵀ(HΣ_kHᵀ + σ²I)⁻¹(y − Hμ_k).

    The mean of `posterior`, in less time and for larger images: only matrices of the size of the
    measurement are factorised. Raises ValueError likewise.
    """
    means = torch.stack([_estimate(*pair) for pair in _pairs(prior, problem)])
    return means.unflatten(-1, prior.image_shape).to(problem.y)


def _pairs(prior: GaussianMixture, problem: Problem) -> Iterator[tuple[GaussianMixture, Problem]]:
    """The prior of every problem, on its device, and the problem, one at a time."""
    diagonalisable(problem.degradation, "the exact posterior")
    if len(prior) not in (1, len(problem)):
        raise ValueError(f"{len(prior)} priors cannot be those of {len(problem)} problems")
    prior = prior.to(problem.y.device)
    priors = [prior[[i]] for i in range(len(prior))] if len(prior) > 1 else [prior] * len(problem)
    return ((one, problem[[i]]) for i, one in enumerate(priors))


def _measurement(problem: Problem) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """diag(s)Vᵀ in the r directions that exist, a map of vectors `[n, D]` to `[n, r]`, and Uᵀy."""
    operator = cast(Diagonalisable, problem.degradation).to(torch.float64)
    exists = operator.s[0] > 0

    def measure(x: Tensor) -> Tensor:
        z = operator.Vt(x.unflatten(-1, operator.image_shape)[None])[0]
        return (operator.s * z)[:, exists]

    return measure, operator.Ut(problem.y.double())[0, exists]


def _condition(prior: GaussianMixture, problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-weights, means, variances and basis of the posterior of one problem."""
    measure, observed = _measurement(problem)
    variance = problem.levels.double() ** 2  # [1]
    unit = torch.eye(prior.means.shape[-1]).to(prior.means)
    L = (unit if prior.basis is None else prior.basis[0]) * prior.variances[0].sqrt()[:, None]
    P, t, Rt = torch.linalg.svd(measure(unit).mT @ L, full_matrices=False)  # K or 1 of each
    seen = t > _ROUNDING * t.sum(-1, keepdim=True)
    total = t.square() + variance
    safe = torch.where(seen, total, 1)

    innovation = (observed - measure(prior.means[0]))[:, None] @ P  # [K, 1, r]
    gain = torch.where(seen, t / safe, 0)[:, None]
    means = prior.means[0] + ((innovation * gain) @ Rt @ L.mT)[:, 0]

    # In a direction that was measured, e keeps σ/√(t² + σ²) of its standard deviation.
    kept = torch.where(seen, (variance / safe).sqrt(), 1)
    basis, roots, _ = torch.linalg.svd(L - (L @ Rt.mT) * (1 - kept)[:, None] @ Rt)
    rank = (prior.variances[0] > 0).sum(-1) - (seen & (variance == 0)).sum(-1)
    exists = torch.arange(roots.shape[-1], device=rank.device) < rank[:, None]
    variances = torch.where(exists, roots.square(), 0)

    known = (_DEGENERATE * cast(Diagonalisable, problem.degradation).s.double().sum()) ** 2
    total = torch.where(seen | (variance > 0), total, known)[:, None]
    evidence = -(innovation.square() / total + (math.tau * total).log()).sum((-1, -2)) / 2
    return prior.log_weights + evidence, means[None], variances[None], basis[None]


def _estimate(prior: GaussianMixture, problem: Problem) -> Tensor:
    """The posterior mean `[D]` of one problem."""
    measure, observed = _measurement(problem)
    cross = torch.stack([measure(covariance).mT for covariance in prior.covariances[0]])
    gram = torch.stack([measure(rows) for rows in cross])  # [K, r, r] of cross [K, r, D]
    gram.diagonal(dim1=-2, dim2=-1).add_(problem.levels.double() ** 2)
    innovation = observed - measure(prior.means[0])  # [K, r]
    solved, energies = _solve(gram, innovation)
    weights = (prior.log_weights[0] - energies / 2).softmax(0)
    return weights @ (prior.means[0] + (solved[:, None] @ cross)[:, 0])


def _solve(gram: Tensor, innovation: Tensor) -> tuple[Tensor, Tensor]:
    """G⁻¹v and vᵀG⁻¹v + log det G, of matrices `[K or 1, r, r]` and vectors `[K, r]`.

    Where G is singular G⁻¹ is its pseudo-inverse, and other directions have next to no variance.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed.any():
        solved = torch.cholesky_solve(innovation[..., None], factor)[..., 0]
        logs = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return solved, (innovation * solved).sum(-1) + logs
    values, vectors = torch.linalg.eigh(gram)
    rounding = _ROUNDING * values.sum(-1, keepdim=True)
    seen = values > rounding
    values = torch.where(seen, values, rounding)
    z = (innovation[:, None] @ vectors)[:, 0]
    solved = (torch.where(seen, z / values, 0)[:, None] @ vectors.mT)[:, 0]
    return solved, (z.square() / values + values.log()).sum(-1)
