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
    sigma: `[B, 1, 1]`; norm: ‖A‖ `[B, 1, 1]`, roughly. Stops if the residual of the normal
    equations has fallen to `tol` of what it was, and warns if `max_iter` steps are not enough;
    without `tol` it makes `max_iter` steps, or as many as rounding allows.

    Conjugate gradients for least squares (Björck, Numerical Methods for Least Squares Problems,
    1996, algorithm 7.4.1) with a damping σ: all steps are the same for one image alone as in a
    batch, where rows that are done wait.
    """
    variance, residual = sigma.square(), y
    direction = slope = adjoint(y)
    energy = _energy(slope)
    x = torch.zeros_like(slope) + 0 * energy  # NaN, of which no energy is above another, stays
    # Aᵀ of the rounding errors of y: less than that cannot be reached.
    rounding = (4 * torch.finfo(y.dtype).eps * norm) ** 2 * _energy(y)
    enough = torch.maximum((tol or 0) ** 2 * energy, rounding)
    for step_number in range(max_iter):
        active = energy > enough
        if tol and step_number % _LOOK == 0 and not active.any():
            return x
        image = forward(direction)
        curvature = _energy(image) + variance * _energy(direction)
        step = torch.where(active & (curvature > 0), energy / curvature, 0)
        x, residual = x + step * direction, residual - step * image
        slope = adjoint(residual) - variance * x
        before, energy = energy, torch.where(active, _energy(slope), energy)
        direction = torch.where(active, slope + energy / before * direction, direction)
    open_rows = int((energy > enough).sum()) if tol else 0
    if open_rows:
        warnings.warn(
            f"conjugate gradients stopped after {max_iter} steps before {open_rows} of "
            f"{energy.numel()} images reached the tolerance {tol:g}: raise max_iter or floor",
            stacklevel=2,
        )
    return x


def _energy(v: Tensor) -> Tensor:
    """Squared lengths of vectors, `[..., n]` to `[..., 1]`."""
    return v.square().sum(-1, keepdim=True)
