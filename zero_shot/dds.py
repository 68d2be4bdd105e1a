"""DDS: a few conjugate-gradient steps towards the measurement in every estimate."""

import math

import torch
from torch import Tensor

from degradation.solve import least_squares
from samplers.base import OnGrid, Run, bounded, register
from zero_shot.base import ZeroShot


@register("dds")
class DDS(ZeroShot, OnGrid):
    """Chung et al., "Decomposed diffusion sampler for accelerating large-scale inverse problems".

    2024, Algorithm 2. From x̂ on, `cg_steps` steps of conjugate gradients on
    (I + γHᵀH)x = x̂ + γHᵀy, without noise on HᵀHx = Hᵀy; then DDIM's move with noise share `eta` and
    the direction (x − D)/σ of the estimate as it was. Only H and Hᵀ are needed. Every image has
    steps of its own; in the authors' code the batch is one vector.
    """

    title = "DDS"

    num_steps: int = 50
    eta: float = bounded(0.85, 0, 1)
    gamma: float = bounded(1.0, 1e-9, 1e9)
    cg_steps: int = bounded(5, 1, 10**4)

    @torch.no_grad()
    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        problem, estimate = run.problem, run.estimate(x, sigma)
        noisy = problem.levels > 0
        damping = torch.where(noisy, self.gamma**-0.5, 0)[:, None, None]
        operator, residual = problem.degradation, problem.residual(estimate)
        nearer = estimate + operator.unflatten(
            least_squares(
                lambda v: operator.H(operator.unflatten(v)),
                lambda y: operator.H_adjoint(y).flatten(-3),
                residual[:, None],
                damping,
                max_iter=self.cg_steps,
            )[:, 0]
        )
        keep = math.sqrt(1 - self.eta**2)
        move = keep * (x - estimate) / sigma + self.eta * run.rng.randn_like(x)
        return nearer + following * move
