"""DDRM: diffusion in the singular directions of the operator."""

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from degradation import Diagonalisable
from samplers.base import OnGrid, Run, check_range, register
from zero_shot.base import ZeroShot


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

    title: ClassVar[str] = "DDRM"
    needs: ClassVar[frozenset[str]] = frozenset({"spectrum"})

    num_steps: int = 25
    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, eta=(0, 1), eta_b=(0, 1))

    def start(self, run: Run, noise: Tensor, sigma: float) -> Tensor:
        operator = cast(Diagonalisable, run.problem.degradation)
        s = torch.where(operator.s > 0, operator.s, math.inf)  # V drops what is not measured
        y, level = operator.Ut(run.problem.y) / s, run.problem.noise_level[:, None] / s
        x, z = super().start(run, noise, sigma), operator.Vt(noise)
        inside = torch.where(level <= sigma, y + _filled(sigma, level) * z, sigma * z)
        run.memory = _Measured(operator, y, level, inside)
        return x + operator.V(inside - sigma * z)

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        m: _Measured = run.memory
        keep = math.sqrt(1 - self.eta**2)
        estimate, fresh = run.estimate(x, sigma), run.rng.randn_like(x)
        free = estimate + following * (keep * (x - estimate) / sigma + self.eta * fresh)
        known, z = m.operator.Vt(torch.stack((estimate, fresh), 1)).unbind(1)
        moved = known + following * (keep * (m.inside - known) / sigma + self.eta * z)
        filled = _filled(following, self.eta_b * m.level)
        above = known + self.eta_b * (m.y - known) + filled * z
        slope = keep / torch.where(m.level > 0, m.level, 1)
        below = known + following * (slope * (m.y - known) + self.eta * z)
        m.inside = torch.where(m.level <= following, above, below)
        return free + m.operator.V(m.inside - moved)


@dataclass
class _Measured:
    """A run in the singular directions: ȳ and its noise τ `[B, R]`, and Vᵀx of the present x."""

    operator: Diagonalisable
    y: Tensor
    level: Tensor
    inside: Tensor


def _filled(sigma: float, level: Tensor) -> Tensor:
    """Standard deviation of the noise that makes noise of `level` up to σ."""
    return (sigma**2 - level.square()).clamp(min=0).sqrt()
