"""Euler's method on the probability-flow ODE, which is DDIM in variance-exploding notation."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from degradation import Problem
from samplers.base import Callback, Denoiser, OnGrid, RandnLike, register


@register("euler")
@dataclass(frozen=True)
class Euler(OnGrid):
    """dx/dσ = (x − D(x, σ)) / σ from sigma_max to 0: num_steps evaluations (EDM, Eq. 1)."""

    num_steps: int = 64

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        problem: Problem,
        rng: RandnLike,
        callback: Callback | None = None,
    ) -> Tensor:
        """One posterior sample for each problem of the batch."""
        grid = self.grid()
        x = noise * grid[0]
        for step, (sigma, following) in enumerate(pairwise(grid)):
            estimate = denoiser(x, sigma, problem)
            if callback:
                callback(step, estimate)
            x = x + (following - sigma) / sigma * (x - estimate)
        return x
