"""Euler's method on the probability-flow ODE, which is DDIM in variance-exploding notation."""

from torch import Tensor

from samplers.base import OnGrid, Run, register


@register("euler")
class Euler(OnGrid):
    """dx/dσ = (x − D(x, σ)) / σ from sigma_max to 0: num_steps evaluations (EDM, Eq. 1)."""

    num_steps: int = 64

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        return x + (following - sigma) / sigma * (x - run.estimate(x, sigma))
