"""DDNM: what is measured is put right in every estimate, the null space is left to the denoiser."""

import math

import torch
from torch import Tensor

from samplers.base import OnGrid, Run, bounded, register
from zero_shot.base import ZeroShot, column, filled, spectral


@register("ddnm")
class DDNM(ZeroShot, OnGrid):
    """Wang et al., "Zero-shot image restoration using denoising diffusion null-space model", 2023.

    Algorithm 1: x̂ is replaced by x̂ + H†(y − Hx̂), then DDIM's move with noise share `eta` and the
    direction (x − D)/σ of the estimate as it was. With noise the simplified rule of Eq. 19, which
    takes every direction for measured with s = 1: λ = min(1, σ'/σₙ) of the correction and noise of
    variance σ'² − λ²σₙ², also where nothing is measured, which loses variance there. For an
    operator with an SVD, `ddnm_plus` goes by the s of each direction.

    released: the shares of InvFusion's released code, 1 − η of the direction rather than √(1 − η²),
    which leaves the chain with 0.86 of its noise.
    """

    title = "DDNM"

    num_steps: int = 100
    eta: float = bounded(0.85, 0, 1)
    released: bool = False

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        problem, level = run.problem, column(run.problem.levels)
        noisy, estimate = level > 0, run.estimate(x, sigma)
        share = torch.where(noisy, following / torch.where(noisy, level, 1), 1).clamp(max=1)
        spread = filled(following, share * level)
        corrected = estimate + share * problem.degradation.H_pinv(problem.residual(estimate))
        keep = 1 - self.eta if self.released else math.sqrt(1 - self.eta**2)
        move = keep * (x - estimate) / sigma + self.eta * run.rng.randn_like(x)
        return corrected + spread * move


@register("ddnm_plus")
class DDNMPlus(ZeroShot, OnGrid):
    """DDNM+ in the singular directions of H (Wang et al., 2023, section 3.3, Eqs. 17 and 51).

    In coordinates z = Vᵀx a measurement is ȳ = Uᵀy/s with noise of τ = σₙ/s. Λ is the share of the
    correction ȳ − x̂ and Φ the noise: to level σ' ≥ τ all of it, with noise of variance σ'² − τ²,
    below √(1 − η²)σ'/τ and ησ'. Directions that are not measured, and all of a problem without
    noise, make DDNM's move. With noise this is DDRM with η_b = 1 but for its start, which is noise
    alone.
    """

    title = "DDNM+"
    needs = frozenset({"spectrum"})

    num_steps: int = 100
    eta: float = bounded(0.85, 0, 1)

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        operator, y, tau = spectral(run.problem)
        keep = math.sqrt(1 - self.eta**2)
        estimate, fresh = run.estimate(x, sigma), run.rng.randn_like(x)
        move = following * (keep * (x - estimate) / sigma + self.eta * fresh)
        known, z, moved = operator.Vt(torch.stack((estimate, fresh, move), 1)).unbind(1)
        above = tau <= following
        share = torch.where(above, 1, keep * following / torch.where(tau > 0, tau, 1))
        spread = torch.where(above, filled(following, tau), self.eta * following)
        measured = share * (y - known) + torch.where(tau > 0, spread * z, moved)
        return estimate + move + operator.V(measured - moved)
