"""DiffPIR: half-quadratic splitting along the chain, each estimate by a proximal step."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from degradation import Problem
from samplers.base import Callback, Denoiser, OnGrid, RandnLike, check_range, register
from zero_shot.base import Prior, ZeroShot


@register("diffpir")
@dataclass(frozen=True)
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

    num_steps: int = 100
    weight: float = 0.25
    zeta: float = 0.25
    noise_floor: float = 0.002

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, weight=(1e-9, 1e9), zeta=(0, 1), noise_floor=(1e-6, 1e3))

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        problem: Problem,
        rng: RandnLike,
        callback: Callback | None = None,
    ) -> Tensor:
        """One restoration of each problem."""
        prior, grid, operator = Prior(denoiser, problem), self.grid(), problem.degradation
        root = math.sqrt(self.weight) * problem.noise_level.clamp(min=self.noise_floor)
        x = grid[0] * noise
        for step, (sigma, following) in enumerate(pairwise(grid)):
            estimate = prior(x, sigma)
            if callback:
                callback(step, estimate)
            estimate = estimate + operator.H_pinv(problem.residual(estimate), root / sigma)
            direction = (x - estimate) / sigma
            fresh = math.sqrt(self.zeta) * rng.randn_like(x)
            x = estimate + following * (math.sqrt(1 - self.zeta) * direction + fresh)
        return x
