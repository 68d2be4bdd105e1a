"""DDNM: what is measured is put right in every estimate, the null space is left to the denoiser."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from degradation import Problem
from samplers.base import Callback, Denoiser, OnGrid, RandnLike, check_range, register
from zero_shot.base import Prior, ZeroShot, column
from zero_shot.ddrm import DDRM


@register("ddnm")
@dataclass(frozen=True)
class DDNM(ZeroShot, OnGrid):
    """Wang et al., "Zero-shot image restoration using denoising diffusion null-space model", 2023.

    Algorithm 1: x̂ is replaced by x̂ + H†(y − Hx̂), then DDIM's move with noise share `eta` and the
    direction (x − D)/σ of the estimate as it was. With noise the simplified rule of Eq. 19, which
    takes all s for 1: λ = min(1, σ'/σₙ) of the correction and noise of variance σ'² − λ²σₙ². For
    an operator with an SVD, `ddnm_plus` is exact about s.

    released: the shares of the paper's code, 1 − η of the direction rather than √(1 − η²), which
    leaves the chain with 0.86 of its noise.
    Differentiable, for unrolling, so gradients are switched off by the caller.
    """

    num_steps: int = 100
    eta: float = 0.85
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, eta=(0, 1))

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        problem: Problem,
        rng: RandnLike,
        callback: Callback | None = None,
    ) -> Tensor:
        """One restoration of each problem; without noise Hx = y."""
        prior, grid, operator = Prior(denoiser, problem), self.grid(), problem.degradation
        keep = 1 - self.eta if self.released else math.sqrt(1 - self.eta**2)
        level = column(problem.noise_level)
        noisy, exact = level > 0, torch.zeros_like(problem.noise_level)
        x = grid[0] * noise
        for step, (sigma, following) in enumerate(pairwise(grid)):
            estimate = prior(x, sigma)
            if callback:
                callback(step, estimate)
            share = torch.where(noisy, following / torch.where(noisy, level, 1), 1).clamp(max=1)
            spread = (following**2 - (share * level).square()).clamp(min=0).sqrt()
            corrected = estimate + share * operator.H_pinv(problem.residual(estimate), exact)
            move = keep * (x - estimate) / sigma + self.eta * rng.randn_like(x)
            x = corrected + spread * move
        return x


@register("ddnm_plus")
@dataclass(frozen=True)
class DDNMPlus(DDRM):
    """DDNM+ in the singular directions of H (Wang et al., 2023, section 3.3 and appendix).

    Λ and Φ are chosen for each direction so that the noise of y never exceeds σ': in
    variance-exploding notation that is DDRM with η_b = 1, on DDNM's 100 steps.
    """

    num_steps: int = 100
