"""PnP-DM: a Gibbs sampler that alternates between the measurement and the prior."""

from itertools import pairwise

import torch
from torch import Tensor

from samplers.base import OnGrid, Run, bounded, register
from zero_shot.base import ZeroShot, ancestral, explain


@register("pnpdm")
class PnPDM(ZeroShot, OnGrid):
    """Wu et al., "Principled probabilistic imaging using diffusion models as plug-and-play priors".

    2024, Algorithm 1. In turn z ~ N(y; Hz, σₙ²I)·N(z; x, ρ²I), exactly, and x ~ p(x0 | x_ρ = z), by
    the ancestral chain on the levels of the grid below ρ, which falls from `rho_start` by the
    factor `decay` an iteration to `rho_last`. The law of the chain is then the posterior for noise
    of covariance σₙ²I + ρ²HHᵀ, ρ = rho_last. The last x is returned; the authors average over many
    of one chain.
    """

    title = "PnP-DM"

    num_steps: int = 100
    iterations: int = bounded(100, 1, 10**6)
    rho_start: float = bounded(10.0, "rho_last", "sigma_max")
    rho_last: float = bounded(0.3, "sigma_min", "sigma_max")
    decay: float = bounded(0.9, 0, 1)

    def evaluations(self) -> int:
        grid = self.grid()
        return sum(1 + sum(sigma < rho for sigma in grid[:-1]) for rho in self._rhos())

    @torch.no_grad()
    def sample(self, run: Run, noise: Tensor) -> Tensor:
        problem, rng, grid = run.problem, run.rng, self.grid()
        x = noise
        for rho in self._rhos():
            x = explain(problem, x, rho, problem.levels, rng)
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
