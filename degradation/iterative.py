"""Operators that are known by H and Hᵀ alone: H† by conjugate gradients."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from degradation.base import Degradation, full_precision

Linear = Callable[[Tensor], Tensor]

_LOOK = 4  # steps between two looks at whether all are done: each waits for the device


class Iterative(Degradation):
    """A linear operator without an SVD: a subclass gives `_measure`, `_spread`, `norm` and `rows`.

    H_pinv is Hᵀ(HHᵀ + σ²I)⁻¹y with σ the noise level, but at least `floor` times ‖H‖: where a
    singular value is as small as that, H† shrinks its direction, by half there and entirely further
    below. So H H_pinv(y) is y to a few `floor` only; with floor 0 it is the least-squares solution
    of smallest norm, for which many steps can be needed. Conjugate gradients stop, for each image
    by itself, where the residual of the normal equations has fallen to `tol` of what it was, or to
    the precision of the numbers; a warning says where `max_iter` steps are not enough. A
    measurement that holds NaN has an H_pinv of NaN.

    All maps are differentiable: the gradient of H is Hᵀ, that of H_pinv, by y and by the noise
    level where that is above the floor, another solution by conjugate gradients. What the subclass
    calls need not be differentiable itself.
    """

    diagonalisable = False

    tol: float = 1e-6
    max_iter: int = 500
    floor: float = 1e-3
    norm: Tensor
    """‖H‖ `[B]`, roughly: what the floor and the rounding are measured by. Its type is that of the
    arithmetic."""

    def _measure(self, x: Tensor) -> Tensor:
        """Hx of stacks: `[B, K, C, h, w]` to `[B, K, M]`."""
        raise NotImplementedError

    def _spread(self, y: Tensor) -> Tensor:
        """Hᵀy of stacks: `[B, K, M]` to `[B, K, C, h, w]`."""
        raise NotImplementedError

    def H(self, x: Tensor) -> Tensor:
        self.check_shape(x)
        return self._on_stacks(lambda v: _Apply.apply(v, self._system()), x.flatten(-3))

    def H_adjoint(self, y: Tensor) -> Tensor:
        system = self._system().transposed()
        return self.unflatten(self._on_stacks(lambda v: _Apply.apply(v, system), y))

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        sigma = torch.as_tensor(noise_level).to(self.norm).expand(len(self))
        sigma = torch.maximum(sigma, self.floor * self.norm)[:, None, None]
        system = self._system()
        return self.unflatten(self._on_stacks(lambda v: _Solve.apply(v, sigma, system), y))

    def clean(self, y: Tensor) -> Tensor:
        """HH†y."""
        return self.H(self.H_pinv(y))

    def _on_stacks(self, fn: Linear, v: Tensor) -> Tensor:
        """fn, a map of vectors `[B, K, n]`, of `[B, (K,) n]` in the operator's own precision."""
        v = full_precision(v).to(self.norm.dtype)
        return fn(v) if v.ndim == 3 else fn(v[:, None])[:, 0]

    def _system(self) -> "_System":
        def measure(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return self._measure(self.unflatten(x))

        def spread(y: Tensor) -> Tensor:
            with torch.autocast(y.device.type, enabled=False):
                return self._spread(y).flatten(-3)

        return _System(measure, spread, self.norm[:, None, None], self.tol, self.max_iter)

    # ---- what needs the SVD -------------------------------------------------------------------

    @property
    def s(self) -> Tensor:
        self._refuse("s")

    def gain(self, noise_level: float | Tensor = 0.0) -> Tensor:
        self._refuse("gain")

    def Vt(self, x: Tensor) -> Tensor:
        self._refuse("Vt")

    def V(self, z: Tensor) -> Tensor:
        self._refuse("V")

    def Ut(self, y: Tensor) -> Tensor:
        self._refuse("Ut")

    def U(self, z: Tensor) -> Tensor:
        self._refuse("U")

    def _refuse(self, name: str) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__} has no singular value decomposition, so no {name}: only H, "
            "H_adjoint, H_pinv and what follows from them"
        )


@dataclass(frozen=True)
class _System:
    """A linear map A of vectors `[B, K, n]` to `[B, K, m]`, and how its least squares are solved.

    norm: `[B, 1, 1]`.
    """

    forward: Linear
    adjoint: Linear
    norm: Tensor
    tol: float
    max_iter: int

    def transposed(self) -> "_System":
        return replace(self, forward=self.adjoint, adjoint=self.forward)

    def solve(self, y: Tensor, sigma: Tensor) -> Tensor:
        """argmin ‖Ax − y‖² + σ²‖x‖², of smallest norm: (AᵀA + σ²I)⁻¹Aᵀy, for each row of y.

        sigma: `[B, 1, 1]`.

        Conjugate gradients for least squares (Björck, Numerical Methods for Least Squares
        Problems, 1996, algorithm 7.4.1) with a damping σ: all steps are the same for one image
        alone as in a batch, where rows that are done wait.
        """
        variance, residual = sigma.square(), y
        direction = slope = self.adjoint(y)
        energy = _energy(slope)
        x = torch.zeros_like(slope) + 0 * energy  # NaN, of which no energy is above another, stays
        # Aᵀ of the rounding errors of y: less than that cannot be reached.
        rounding = (4 * torch.finfo(y.dtype).eps * self.norm).square() * _energy(y)
        enough = torch.maximum(self.tol**2 * energy, rounding)
        for step_number in range(self.max_iter):
            active = energy > enough
            if step_number % _LOOK == 0 and not active.any():
                return x
            image = self.forward(direction)
            curvature = _energy(image) + variance * _energy(direction)
            step = torch.where(active & (curvature > 0), energy / curvature, 0)
            x, residual = x + step * direction, residual - step * image
            slope = self.adjoint(residual) - variance * x
            before, energy = energy, torch.where(active, _energy(slope), energy)
            direction = torch.where(active, slope + energy / before * direction, direction)
        self._warn(energy, enough)
        return x

    def _warn(self, energy: Tensor, enough: Tensor) -> None:
        open_rows = int((energy > enough).sum())
        if open_rows:
            warnings.warn(
                f"conjugate gradients stopped after {self.max_iter} steps before {open_rows} of "
                f"{energy.numel()} images reached the tolerance {self.tol:g}: raise max_iter or "
                "floor",
                stacklevel=2,
            )


def _energy(v: Tensor) -> Tensor:
    """Squared lengths of vectors, `[..., n]` to `[..., 1]`."""
    return v.square().sum(-1, keepdim=True)


class _Apply(torch.autograd.Function):
    """Ax, whose gradient is Aᵀg."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, system: _System) -> Tensor:
        ctx.system = system
        return system.forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Apply.apply(grad, ctx.system.transposed()), None


class _Solve(torch.autograd.Function):
    """x = (AᵀA + σ²I)⁻¹Aᵀy. Its gradient by y is u = (AAᵀ + σ²I)⁻¹Ag, the same for the transposed
    map; by σ it is −2σ⟨g, (AᵀA + σ²I)⁻¹x⟩ = −2/σ ⟨u, y − Ax⟩, for x = Aᵀ(y − Ax)/σ²."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, sigma: Tensor, system: _System) -> Tensor:
        ctx.system = system
        x = system.solve(y, sigma)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(y, sigma, x)
        else:
            ctx.save_for_backward(sigma)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if not ctx.needs_input_grad[1]:
            (sigma,) = ctx.saved_tensors
            return _Solve.apply(grad, sigma, ctx.system.transposed()), None, None
        y, sigma, x = ctx.saved_tensors
        back = _Solve.apply(grad, sigma, ctx.system.transposed())
        residual = y - _Apply.apply(x, ctx.system)
        slope = (back * residual).sum((1, 2), keepdim=True)
        by_sigma = torch.where(sigma > 0, -2 * slope / torch.where(sigma > 0, sigma, 1), 0)
        return back, by_sigma, None
