"""DDRM: diffusion in the singular directions of the operator."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from degradation import Problem
from samplers.base import (
    Callback,
    Denoiser,
    OnGrid,
    RandnLike,
    check_operator,
    check_range,
    register,
)
from zero_shot.base import Prior, ZeroShot


@register("ddrm")
@dataclass(frozen=True)
class DDRM(ZeroShot, OnGrid):
    """Kawar et al., "Denoising diffusion restoration models", 2022, Eqs. 4 and 5.

    In coordinates z = Vᵀx a measurement is ȳ = Uᵀy/s with noise of τ = σₙ/s. Coordinates that are
    not measured make DDIM's move with noise share `eta`. From x̂ to level σ' a measured one goes to
    (1 − η_b)x̂ + η_b·ȳ with the noise of ȳ filled up to σ', where that is at least τ; below, it
    keeps x̂ and is drawn towards ȳ by √(1 − η²)σ'/τ.

    InvFusion's released code has another noise where σ' ≥ τ, and with σₙ > 0 leaves x̂ out below:
    its results are then zero in the measured directions. Without noise the law is the same.
    Differentiable, for unrolling, so gradients are switched off by the caller.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"spectrum"})

    num_steps: int = 25
    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, eta=(0, 1), eta_b=(0, 1))

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        problem: Problem,
        rng: RandnLike,
        callback: Callback | None = None,
    ) -> Tensor:
        """One restoration of each problem. Raises ValueError for operators without an SVD."""
        operator = problem.degradation
        check_operator(self, operator)
        prior, grid, keep = Prior(denoiser, problem), self.grid(), math.sqrt(1 - self.eta**2)
        s = operator.s
        s = torch.where(s > 0, s, math.inf)  # not measured: V drops whatever stands there
        y, level = operator.Ut(problem.y) / s, problem.noise_level[:, None] / s
        slope = keep / torch.where(level > 0, level, 1)

        def filled(sigma: float, share: float) -> Tensor:
            """Noise that makes that of share·ȳ up to σ."""
            return (sigma**2 - (share * level).square()).clamp(min=0).sqrt()

        x, z = grid[0] * noise, operator.Vt(noise)
        inside = torch.where(level <= grid[0], y + filled(grid[0], 1) * z, grid[0] * z)  # Vᵀx
        x = x + operator.V(inside - grid[0] * z)
        for step, (sigma, following) in enumerate(pairwise(grid)):
            estimate = prior(x, sigma)
            if callback:
                callback(step, estimate)
            fresh = rng.randn_like(x)
            free = estimate + following * (keep * (x - estimate) / sigma + self.eta * fresh)
            known, z = operator.Vt(torch.stack((estimate, fresh), 1)).unbind(1)
            moved = known + following * (keep * (inside - known) / sigma + self.eta * z)
            above = known + self.eta_b * (y - known) + filled(following, self.eta_b) * z
            below = known + following * (slope * (y - known) + self.eta * z)
            inside = torch.where(level <= following, above, below)
            x = free + operator.V(inside - moved)
        return x
