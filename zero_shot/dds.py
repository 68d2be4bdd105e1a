"""DDS: a few conjugate-gradient steps towards the measurement in every estimate."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from degradation import Degradation, Problem
from samplers.base import Callback, Denoiser, OnGrid, RandnLike, check_range, register
from zero_shot.base import Prior, ZeroShot, column, squared_norm


@register("dds")
@dataclass(frozen=True)
class DDS(ZeroShot, OnGrid):
    """Chung et al., "Decomposed diffusion sampler for accelerating large-scale inverse problems".

    2024, Algorithm 2. From x̂ on, `cg_steps` steps of conjugate gradients on
    (I + γHᵀH)x = x̂ + γHᵀy, without noise on HᵀHx = Hᵀy; then DDIM's move with noise share `eta` and
    the direction (x − D)/σ of the estimate as it was. Only H and Hᵀ are needed. Every image has
    steps of its own; in the authors' code the batch is one vector.
    """

    num_steps: int = 50
    eta: float = 0.85
    gamma: float = 1.0
    cg_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, eta=(0, 1), gamma=(1e-9, 1e9), cg_steps=(1, 10**4))

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
        prior, grid, keep = Prior(denoiser, problem), self.grid(), math.sqrt(1 - self.eta**2)
        damping = column((problem.noise_level > 0).to(problem.noise_level) / self.gamma)
        backprojected = problem.degradation.H_adjoint(problem.y)
        x = grid[0] * noise
        for step, (sigma, following) in enumerate(pairwise(grid)):
            estimate = prior(x, sigma)
            if callback:
                callback(step, estimate)
            target = damping * estimate + backprojected
            nearer = conjugate_gradients(
                problem.degradation, target, estimate, damping, self.cg_steps
            )
            move = keep * (x - estimate) / sigma + self.eta * rng.randn_like(x)
            x = nearer + following * move
        return x


def conjugate_gradients(
    operator: Degradation, target: Tensor, x: Tensor, damping: Tensor, steps: int
) -> Tensor:
    """`steps` steps on (HᵀH + damping·I)x = target from x, for every image by itself."""

    def normal(v: Tensor) -> Tensor:
        return operator.H_adjoint(operator.H(v)) + damping * v

    direction = residual = target - normal(x)
    energy = squared_norm(residual)
    # Below are rounding errors, along which a singular HᵀH would be inverted: the image waits.
    enough = (4 * torch.finfo(x.dtype).eps) ** 2 * (squared_norm(target) + energy)
    for _ in range(steps):
        image = normal(direction)
        curvature = (direction * image).flatten(1).sum(1)
        active = (energy > enough) & (curvature > 0)
        step = column(torch.where(active, energy / torch.where(active, curvature, 1), 0))
        x, residual = x + step * direction, residual - step * image
        before, energy = torch.where(active, energy, 1), squared_norm(residual)
        turned = residual + column(energy / before) * direction
        direction = torch.where(column(active), turned, direction)
    return x
