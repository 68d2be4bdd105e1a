"""PnP-DM: a Gibbs sampler that alternates between the measurement and the prior."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from degradation import Problem
from samplers.base import Denoiser, OnGrid, RandnLike, check_range, register
from zero_shot.base import ZeroShot, ancestral, explain


@register("pnpdm")
@dataclass(frozen=True)
class PnPDM(ZeroShot, OnGrid):
    """Wu et al., "Principled probabilistic imaging using diffusion models as plug-and-play priors".

    2024, Algorithm 1. In turn z ~ N(y; Hz, σₙ²I)·N(z; x, ρ²I), exactly, and x ~ p(x0 | x_ρ = z), by
    the ancestral chain on the levels of the grid below ρ, which falls from `rho_start` by the
    factor `decay` an iteration to `rho_last`. The law of the chain is then the posterior for noise
    of covariance σₙ²I + ρ²HHᵀ, ρ = rho_last. The last x is returned; the authors average over many
    of one chain.
    """

    title: ClassVar[str] = "PnP-DM"

    num_steps: int = 100
    iterations: int = 100
    rho_start: float = 10.0
    rho_last: float = 0.3
    decay: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, iterations=(1, 10**6), decay=(0, 1))
        check_range(self, rho_last=(self.sigma_min, self.sigma_max))
        check_range(self, rho_start=(self.rho_last, self.sigma_max))

    def evaluations(self) -> int:
        grid = self.grid()
        return sum(1 + sum(sigma < rho for sigma in grid[:-1]) for rho in self._rhos())

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, noise: Tensor, problem: Problem, rng: RandnLike
    ) -> Tensor:
        run, grid = self.begin(denoiser, problem, rng), self.grid()
        x = noise
        for rho in self._rhos():
            x = explain(problem, x, rho, problem.noise_level, rng)
            for sigma, following in pairwise([rho, *(s for s in grid if s < rho)]):
                estimate = run.estimate(x, sigma)
                along, spread = ancestral(sigma, following)
                x = estimate + along * (x - estimate) / sigma
                if spread:
                    x = x + spread * rng.randn_like(x)
        return x

    def _rhos(self) -> list[float]:
        """ρ of each iteration."""
        falling = (self.rho_start * self.decay**i for i in range(self.iterations))
        return [max(self.rho_last, rho) for rho in falling]
