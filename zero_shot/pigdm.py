"""ΠGDM: guidance by the pseudo-inverse, as if x0 given x were Gaussian."""

import math

import torch
from torch import Tensor

from samplers.base import OnGrid, Run, bounded, one_of, register
from zero_shot.base import ZeroShot, ancestral, linearised


@register("pigdm")
class PiGDM(ZeroShot, OnGrid):
    """Song et al., "Pseudoinverse-guided diffusion models for inverse problems", 2023.

    With Cov[x0 | x] taken for r²I the guidance is g = Jᵀ Hᵀ(HHᵀ + (σₙ/r)²I)⁻¹(y − Hx̂), where
    r² = σ²v/(σ² + v) for data of standard deviation √v = `data_std`.

    form "guidance", Algorithm 1 in the authors' own code: x' = DDIM(x) + g, with `eta` times the
    noise of the ancestral move (1 in their paper; 0 is the default of that code and of
    InvFusion's). form "score": x̂ + (σ²/r²)·g takes the place of x̂ in DDIM; exact for data N(m, vI)
    in the limit of many steps. With noise InvFusion's released code leaves r out.
    """

    title = "ΠGDM"
    needs = frozenset({"gradient"})

    num_steps: int = 100
    eta: float = bounded(1.0, 0, 1)
    data_std: float = bounded(1.0, 1e-6, 1e6)
    form: str = one_of("guidance", "score")

    @torch.no_grad()
    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        problem, variance = run.problem, self.data_std**2
        estimate, pullback = linearised(run, x, sigma)
        r = sigma * math.sqrt(variance / (sigma**2 + variance))
        level = problem.levels / r
        g = pullback(problem.degradation.H_pinv(problem.residual(estimate), level))
        if self.form == "score":
            estimate, g = estimate + (sigma / r) ** 2 * g, torch.zeros_like(g)
        spread = self.eta * ancestral(sigma, following)[1]
        along = math.sqrt(following**2 - spread**2)
        x = estimate + along * (x - estimate) / sigma + g
        return x + spread * run.rng.randn_like(x) if spread else x
