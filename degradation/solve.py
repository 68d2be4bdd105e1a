"""Least squares by conjugate gradients, for each image of a batch by itself."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]

_LOOK = 4  # steps between two looks at whether all are done: each waits for the device


def least_squares(
    forward: Linear,
    adjoint: Linear,
    y: Tensor,
    sigma: Tensor,
    max_iter: int,
    tol: float | None = None,
    norm: Tensor | float = 1.0,
) -> Tensor:
    """argmin ‖Ax − y‖² + σ²‖x‖², of smallest norm: (AᵀA + σ²I)⁻¹Aᵀy, for each row of y.

    forward, adjoint: A and Aᵀ, maps of vectors `[B, K, n]` to `[B, K, m]` and back; y: `[B, K, m]`;
    sigma: `[B, 1, 1]`; norm: ‖A‖ `[B, 1, 1]`, roughly. Stops if the residual r of [A; σI]x = [y; 0]
    has ‖r‖ ≤ tol ‖y‖ or ‖[A; σI]ᵀr‖ ≤ tol ‖A‖ ‖r‖: x is then exact for an A and a y that differ by
    about `tol` (Paige and Saunders, LSQR, 1982, section 6), and its error along a singular value s
    is about tol ‖A‖/s of x. A `tol` below the rounding of the numbers counts as that. Warns if
    `max_iter` steps are not enough; without `tol` it makes as many, or as rounding allows.

    Conjugate gradients for least squares (Björck, Numerical Methods for Least Squares Problems,
    1996, algorithm 7.4.1) with a damping σ. Rows that are done wait for the others.
    """
    variance, residual, left = sigma.square(), y, _energy(y)
    direction = slope = adjoint(y)
    energy = _energy(slope)
    x = torch.zeros_like(slope) + 0 * energy  # NaN, of which nothing is above anything, stays
    relative = max(tol or 0, 4 * torch.finfo(y.dtype).eps) ** 2
    enough = relative * left
    for step_number in range(max_iter):
        active = (left > enough) & (energy > relative * norm**2 * left)
        if tol and step_number % _LOOK == 0 and not active.any():
            return x
        image = forward(direction)
        curvature = _energy(image) + variance * _energy(direction)
        step = torch.where(active & (curvature > 0), energy / curvature, 0)
        x, residual = x + step * direction, residual - step * image
        slope = adjoint(residual) - variance * x
        left = _energy(residual) + variance * _energy(x)
        before, energy = energy, torch.where(active, _energy(slope), energy)
        direction = torch.where(active, slope + energy / before * direction, direction)
    if tol:
        reached = torch.minimum(left / _energy(y), energy / (norm**2 * left)).sqrt()
        if (late := reached[reached > relative**0.5]).numel():
            warnings.warn(
                f"conjugate gradients stopped after {max_iter} steps before {late.numel()} of "
                f"{energy.numel()} images reached the tolerance {tol:g} (the worst is at "
                f"{late.max():.1g}): raise max_iter or floor",
                stacklevel=2,
            )
    return x


def _energy(v: Tensor) -> Tensor:
    """Squared lengths of vectors, `[..., n]` to `[..., 1]`."""
    return v.square().sum(-1, keepdim=True)
