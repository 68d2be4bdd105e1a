"""Euler's method on the probability-flow ODE, which is DDIM in variance-exploding notation."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from degradation import Problem
from samplers.base import Callback, Denoiser, RandnLike, check_range, karras_grid, register


@register("euler")
@dataclass(frozen=True)
class Euler:
    """dx/dσ = (x − D(x, σ)) / σ from sigma_max to 0: num_steps evaluations (EDM, Eq. 1)."""

    num_steps: int = 64
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_range(self, num_steps=(2, 10**6), sigma_min=(1e-9, self.sigma_max))
        check_range(self, sigma_max=(1e-9, 1e6), rho=(1e-3, 1e3))

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
            estimate = denoiser(x, sigma, problem)
            if callback:
                callback(step, estimate)
            x = x + (following - sigma) / sigma * (x - estimate)
        return x
