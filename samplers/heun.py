"""Heun's second-order method, with the optional stochasticity of EDM (Karras et al., 2022)."""

import math

from torch import Tensor

from samplers.base import OnGrid, Run, bounded, register


@register("heun")
class Heun(OnGrid):
    """EDM, Algorithm 2: 2·num_steps − 1 evaluations, 63 by default as in the paper.

    With churn > 0, steps with churn_min ≤ σ ≤ churn_max first raise the noise level by a factor
    1 + min(churn / num_steps, √2 − 1) with noise of standard deviation churn_noise.
    """

    num_steps: int = 32
    churn: float = bounded(0.0, 0, math.inf)
    churn_min: float = bounded(0.0, 0, "churn_max")
    churn_max: float = bounded(math.inf, 0, math.inf)
    churn_noise: float = bounded(1.0, 0, 1e3)

    def evaluations(self) -> int:
        return 2 * self.num_steps - 1

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        if self.churn and self.churn_min <= sigma <= self.churn_max:
            raised = sigma * (1 + min(self.churn / self.num_steps, math.sqrt(2) - 1))
            spread = math.sqrt(raised**2 - sigma**2) * self.churn_noise
            x, sigma = x + spread * run.rng.randn_like(x), raised
        slope = (x - run.estimate(x, sigma)) / sigma
        euler = x + (following - sigma) * slope
        if not following:
            return euler
        end = (euler - run.estimate(euler, following)) / following
        return x + (following - sigma) * (slope + end) / 2
