"""DiffPIR: half-quadratic splitting along the chain, each estimate by a proximal step."""

import math

import torch
from torch import Tensor

from samplers.base import OnGrid, Run, bounded, register
from zero_shot.base import ZeroShot


@register("diffpir")
class DiffPIR(ZeroShot, OnGrid):
    """Zhu et al., "Denoising diffusion models for plug-and-play image restoration", 2023, Alg. 1.

    x̂ is replaced by argmin ‖y − Hx‖² + ρ‖x − x̂‖² with ρ = λσₙ²/σ² and λ = `weight`, exactly, which
    takes H and Hᵀ(HHᵀ + ρI)⁻¹ only; the direction follows the new estimate; `zeta` is the share of
    fresh noise in the variance: 0.1 for blur, 0.25 for super-resolution, 1 for in-painting in the
    paper. The authors' λ refers to σₙ of images in [0, 1], half of ours: their λ = 1 is 0.25 here.
    The noise level is taken for at least `noise_floor`, their 0.001 in those units. They skip times
    quadratically and leave the last estimate as it is; here the levels are those of EDM, and every
    estimate is moved.
    """

    title = "DiffPIR"

    num_steps: int = 100
    weight: float = bounded(0.25, 1e-9, 1e9)
    zeta: float = bounded(0.25, 0, 1)
    noise_floor: float = bounded(0.002, 1e-6, 1e3)

    @torch.no_grad()
    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        problem, estimate = run.problem, run.estimate(x, sigma)
        root = math.sqrt(self.weight) * problem.levels.clamp(min=self.noise_floor)
        residual = problem.residual(estimate)
        estimate = estimate + problem.degradation.H_pinv(residual, root / sigma)
        direction = (x - estimate) / sigma
        fresh = math.sqrt(self.zeta) * run.rng.randn_like(x)
        return estimate + following * (math.sqrt(1 - self.zeta) * direction + fresh)
