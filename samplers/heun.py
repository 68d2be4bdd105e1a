"""Heun's second-order method, with the optional stochasticity of EDM (Karras et al., 2022)."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from degradation import Problem
from samplers.base import Callback, Denoiser, RandnLike, check_range, karras_grid, register


@register("heun")
@dataclass(frozen=True)
class Heun:
    """EDM, Algorithm 2: 2·num_steps − 1 evaluations, 63 by default as in the paper.

    With churn > 0, steps with churn_min ≤ σ ≤ churn_max first raise the noise level by a factor
    1 + min(churn / num_steps, √2 − 1) with noise of standard deviation churn_noise.
    """

    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, num_steps=(2, 10**6), sigma_min=(1e-9, self.sigma_max))
        check_range(self, sigma_max=(1e-9, 1e6), rho=(1e-3, 1e3), churn=(0, math.inf))
        check_range(self, churn_min=(0, self.churn_max), churn_max=(0, math.inf))
        check_range(self, churn_noise=(0, 1e3))

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        problem: Problem,
        rng: RandnLike,
        callback: Callback | None = None,
    ) -> Tensor:
        """One posterior sample for each problem of the batch."""
        grid = karras_grid(self.num_steps, self.sigma_min, self.sigma_max, self.rho).tolist()
        x = noise * grid[0]
        for step, (sigma, following) in enumerate(pairwise(grid)):
            if self.churn and self.churn_min <= sigma <= self.churn_max:
                raised = sigma * (1 + min(self.churn / self.num_steps, math.sqrt(2) - 1))
                spread = math.sqrt(raised**2 - sigma**2) * self.churn_noise
                x, sigma = x + spread * rng.randn_like(x), raised
            estimate = denoiser(x, sigma, problem)
            if callback:
                callback(step, estimate)
            slope = (x - estimate) / sigma
            euler = x + (following - sigma) * slope
            if following:
                end = (euler - denoiser(euler, following, problem)) / following
                euler = x + (following - sigma) * (slope + end) / 2
            x = euler
        return x
