"""What zero-shot samplers share: the gradient of the denoiser, grids, moves."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from degradation import Diagonalisable, Problem
from samplers.base import RandnLike, Run, Sampler


class ZeroShot(Sampler):
    """A sampler that asks the denoiser about images alone, and uses H and y itself."""

    def tell(self, problem: Problem) -> Problem:
        return problem.unconditional()


def linearised(run: Run, x: Tensor, sigma: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """E[x0 | x], and the map v → Jᵀv with J = ∂E[x0 | x]/∂x, which can be asked once.

    Raises ValueError if the denoiser has no gradient.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        estimate = run.estimate(x, sigma)
    if not estimate.requires_grad:
        raise ValueError("this sampler needs the gradient of the denoiser, which has none")

    def pullback(v: Tensor) -> Tensor:
        # What ran in full precision on the way there does so on the way back.
        with torch.autocast(x.device.type, enabled=False):
            return torch.autograd.grad(estimate, x, v)[0]

    return estimate.detach(), pullback


def ddpm_grid(num_steps: int) -> list[float]:
    """Noise levels σ = √(1/ᾱ − 1) of num_steps times spread evenly over those of DDPM, ascending.

    DDPM (Ho et al., 2020) has 1000 times with β from 1e-4 to 0.02: σ from 0.01 to 157.
    """
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    times = torch.linspace(0, 999, num_steps, dtype=torch.float64).round().long()
    return (1 / torch.cumprod(1 - beta, 0)[times] - 1).sqrt().tolist()


def ancestral(sigma: float, following: float) -> tuple[float, float]:
    """(a, c) of DDPM's move from σ to σ': x' = x̂ + a·(x − x̂)/σ + c·z, with a² + c² = σ'².

    It draws from p(x' | x, x0 = x̂).
    """
    spread = following * math.sqrt(max(0.0, sigma**2 - following**2)) / sigma
    return following**2 / sigma, spread


def column(values: Tensor) -> Tensor:
    """`[B]` numbers as `[B, 1, 1, 1]`."""
    return values.view(-1, 1, 1, 1)


def filled(sigma: float, level: Tensor) -> Tensor:
    """Standard deviation of the noise that makes noise of `level` up to σ; 0 if that is less."""
    return (sigma**2 - level.square()).clamp(min=0).sqrt()


def spectral(problem: Problem) -> tuple[Diagonalisable, Tensor, Tensor]:
    """The operator, and in its singular directions ȳ = Uᵀy/s and its noise τ = σₙ/s, `[B, R]`.

    Where nothing is measured they are 0, and V drops what comes of them.
    """
    operator = cast(Diagonalisable, problem.degradation)
    s = torch.where(operator.s > 0, operator.s, math.inf)
    return operator, operator.Ut(problem.y) / s, problem.levels[:, None] / s


def explain(problem: Problem, mean: Tensor, spread: float, level: Tensor, rng: RandnLike) -> Tensor:
    """A sample `[B, C, h, w]` of the density ∝ N(y; Hx, level²I)·N(x; mean, spread²I); level `[B]`.

    Both are perturbed, then explained at once (Papandreou and Yuille, "Gaussian sampling by local
    perturbations", 2010): no SVD is needed.
    """
    x = mean + spread * rng.randn_like(mean)
    y = problem.y + level[:, None] * rng.randn_like(problem.y)
    return x + problem.degradation.H_pinv(y - problem.degradation.H(x), level / spread)
