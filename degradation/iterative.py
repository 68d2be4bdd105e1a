"""Operators that are known by H and Hᵀ alone: H† by conjugate gradients."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from degradation.base import LinearOperator, full_precision
from degradation.solve import Linear, least_squares


class Iterative(LinearOperator):
    """A linear operator without an SVD: a subclass gives `_measure`, `_spread`, `norm` and `rows`.

    H_pinv is Hᵀ(HHᵀ + σ²I)⁻¹y with σ the noise level, but at least `floor` times ‖H‖: it shrinks a
    direction whose singular value is as small as that by half, and smaller ones entirely. With
    floor 0 it is the least-squares solution of smallest norm, for which many steps can be needed.
    Conjugate gradients stop, for each image by itself, where the solution is exact for an H and a y
    that differ by `tol` (`least_squares`). A warning says if `max_iter` steps are too few. A
    measurement that holds NaN has an H_pinv of NaN.

    All maps are differentiable, though what the subclass calls need not be: the gradient of H is
    Hᵀ, that of H_pinv, by y and by a noise level above the floor, another least-squares solution.
    """

    tol: float = 1e-6
    max_iter: int = 500
    floor: float = 1e-3
    norm: Tensor
    """‖H‖ `[B]`, roughly, in the type of the arithmetic."""

    def _measure(self, x: Tensor) -> Tensor:
        """Hx of stacks: `[B, K, C, h, w]` to `[B, K, M]`."""
        raise NotImplementedError

    def _spread(self, y: Tensor) -> Tensor:
        """Hᵀy of stacks: `[B, K, M]` to `[B, K, C, h, w]`."""
        raise NotImplementedError

    def H(self, x: Tensor) -> Tensor:
        return self._on_stacks(lambda v: _Apply.apply(v, self._system()), self.flatten(x))

    def H_adjoint(self, y: Tensor) -> Tensor:
        system = self._system().transposed()
        return self.unflatten(self._on_stacks(lambda v: _Apply.apply(v, system), y))

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        sigma = torch.as_tensor(noise_level).to(self.norm).expand(len(self))
        sigma = torch.maximum(sigma, self.floor * self.norm)[:, None, None]
        system = self._system()
        return self.unflatten(self._on_stacks(lambda v: _Solve.apply(v, sigma, system), y))

    @property
    def largest_gain(self) -> Tensor:
        return self.norm

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

        return _System(measure, spread, self.max_iter, self.tol, self.norm[:, None, None])


class _System(NamedTuple):
    """A linear map A of vectors `[B, K, n]` to `[B, K, m]`, and the options of `least_squares`."""

    forward: Linear
    adjoint: Linear
    max_iter: int
    tol: float
    norm: Tensor

    def transposed(self) -> "_System":
        return self._replace(forward=self.adjoint, adjoint=self.forward)


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
        x = least_squares(system.forward, system.adjoint, y, sigma, *system[2:])
        ctx.save_for_backward(sigma, *((y, x) if ctx.needs_input_grad[1] else ()))
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        sigma, *known = ctx.saved_tensors
        back = _Solve.apply(grad, sigma, ctx.system.transposed())
        if not known:
            return back, None, None
        y, x = known
        residual = y - _Apply.apply(x, ctx.system)
        slope = (back * residual).sum((1, 2), keepdim=True)
        by_sigma = torch.where(sigma > 0, -2 * slope / torch.where(sigma > 0, sigma, 1), 0)
        return back, by_sigma, None
