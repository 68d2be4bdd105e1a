"""DPS: every step of the unconditional chain descends the distance to the measurement."""

import math

import torch
from torch import Tensor

from samplers.base import OnGrid, Run, bounded, register
from zero_shot.base import ZeroShot, ancestral, column, linearised


@register("dps")
class DPS(ZeroShot, OnGrid):
    """Chung et al., "Diffusion posterior sampling for general noisy inverse problems", 2023.

    Algorithm 1: x' = ancestral(x) − ζ·f·∇ₓ‖y − H D(x)‖ with f = √((1 + σ²)(1 + σ'²)), which is
    what the step of the variance-preserving original becomes. The norm is that of each image.
    `zeta` is 0.5 there for in-painting, 0.3 for blur and super-resolution.

    released: f = 1, as in InvFusion's released code, where guidance is lost in the noise at large
    σ; its norm, taken over the whole batch, is not followed.
    """

    title = "DPS"
    needs = frozenset({"gradient"})

    num_steps: int = 1000
    zeta: float = bounded(0.5, 0, 1e6)
    released: bool = False

    @torch.no_grad()
    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        problem = run.problem
        estimate, pullback = linearised(run, x, sigma)
        residual = problem.residual(estimate) * problem.degradation.rows
        norm = column(residual.square().sum(1).sqrt())
        slope = problem.degradation.H_adjoint(residual) / torch.where(norm > 0, norm, 1)
        factor = 1 if self.released else math.sqrt((1 + sigma**2) * (1 + following**2))
        along, spread = ancestral(sigma, following)
        moved = estimate + along * (x - estimate) / sigma + spread * run.rng.randn_like(x)
        return moved + self.zeta * factor * pullback(slope)
