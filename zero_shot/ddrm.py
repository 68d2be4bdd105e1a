"""DDRM: diffusion in the singular directions of the operator."""

import math

import torch
from torch import Tensor

from samplers.base import OnGrid, Run, bounded, register
from zero_shot.base import ZeroShot, filled, spectral


@register("ddrm")
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

    title = "DDRM"
    needs = frozenset({"spectrum"})

    num_steps: int = 25
    eta: float = bounded(0.85, 0, 1)
    eta_b: float = bounded(1.0, 0, 1)

    def start(self, run: Run, noise: Tensor, sigma: float) -> Tensor:
        operator, y, tau = spectral(run.problem)
        x, z = super().start(run, noise, sigma), operator.Vt(noise)
        inside = torch.where(tau <= sigma, y + filled(sigma, tau) * z, sigma * z)
        run.memory = operator, y, tau, inside
        return x + operator.V(inside - sigma * z)

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        operator, y, tau, inside = run.memory  # inside: Vᵀx
        keep = math.sqrt(1 - self.eta**2)
        estimate, fresh = run.estimate(x, sigma), run.rng.randn_like(x)
        free = estimate + following * (keep * (x - estimate) / sigma + self.eta * fresh)
        known, z = operator.Vt(torch.stack((estimate, fresh), 1)).unbind(1)
        moved = known + following * (keep * (inside - known) / sigma + self.eta * z)
        above = known + self.eta_b * (y - known) + filled(following, self.eta_b * tau) * z
        slope = keep / torch.where(tau > 0, tau, 1)
        below = known + following * (slope * (y - known) + self.eta * z)
        inside = torch.where(tau <= following, above, below)
        run.memory = operator, y, tau, inside
        return free + operator.V(inside - moved)


@register("unrolled")
class Unrolled(DDRM):
    """DDRM in 10 steps, for networks trained with the objective `unrolled` (paper, Table 14).

    Before the fine-tuning the same is `DDRM(num_steps=10)`, on the same network.
    """

    title = "Unrolled DDRM"
    objectives = frozenset({"unrolled"})

    num_steps: int = 10
