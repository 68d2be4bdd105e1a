"""What zero-shot solvers share: the unconditional denoiser and its gradient, grids, moves."""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from degradation import Degradation, Problem
from degradation.iterative import Iterative
from samplers.base import Denoiser, RandnLike

Pullback = Callable[[Tensor], Tensor]


class ZeroShot:
    """A solver that asks the denoiser about images alone, and uses H and y itself.

    needs: "spectrum" where it takes the SVD of H, "gradient" where it differentiates the denoiser.
    """

    needs: ClassVar[frozenset[str]] = frozenset()


class Prior:
    """A denoiser that is told the class of a problem, but neither H nor y."""

    def __init__(self, denoiser: Denoiser, problem: Problem):
        self.denoiser, self.problem = denoiser, problem.unconditional()
        self._several: dict[int, Problem] = {1: self.problem}

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x] of images `[B, C, h, w]` at noise level sigma."""
        return self.denoiser(x, sigma, self.problem)

    def of_particles(self, x: Tensor, sigma: float, batch: int) -> Tensor:
        """E[x0 | x] of K particles of each image, `[B, K, C, h, w]`.

        In calls of as many particles as keep within `batch` images, at least one of each image.
        """
        parts = []
        for part in x.split(max(1, batch // len(x)), 1):
            count = part.shape[1]
            if count not in self._several:
                self._several[count] = self.problem.expand(count)
            blocks = part.movedim(1, 0).flatten(0, 1)  # as `Problem.expand` orders them
            estimate = self.denoiser(blocks, sigma, self._several[count])
            parts.append(estimate.unflatten(0, (count, -1)).movedim(0, 1))
        return torch.cat(parts, 1)

    def linearised(self, x: Tensor, sigma: float) -> tuple[Tensor, Pullback]:
        """E[x0 | x], and the map v → Jᵀv with J = ∂E[x0 | x]/∂x, which can be asked once.

        Raises ValueError where the denoiser has no gradient.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            estimate = self(x, sigma)
        if not estimate.requires_grad:
            raise ValueError("this solver needs the gradient of the denoiser, which has none")

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


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖² of every image, `[B, ...]` to `[B]`."""
    return x.flatten(1).square().sum(1)


def largest_gain(operator: Degradation) -> Tensor:
    """‖H‖ `[B]`, roughly where the operator has no SVD."""
    return operator.norm if isinstance(operator, Iterative) else operator.s.amax(1)


def explain(problem: Problem, mean: Tensor, spread: float, level: Tensor, rng: RandnLike) -> Tensor:
    """A sample `[B, C, h, w]` of the density ∝ N(y; Hx, level²I)·N(x; mean, spread²I); level `[B]`.

    Both are perturbed, then explained at once (Papandreou and Yuille, "Gaussian sampling by local
    perturbations", 2010): no SVD is needed.
    """
    x = mean + spread * rng.randn_like(mean)
    y = problem.y + level[:, None] * rng.randn_like(problem.y)
    return x + problem.degradation.H_pinv(y - problem.degradation.H(x), level / spread)
