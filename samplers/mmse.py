"""The minimum mean-square-error estimate in one evaluation."""

from dataclasses import dataclass

from torch import Tensor

from degradation import Problem
from samplers.base import Denoiser, RandnLike, Sampler, check_range, register


@register("mmse")
@dataclass(frozen=True)
class MMSE(Sampler):
    """D(σ·noise, σ) at σ = 100: the image drowns in noise, so E[x0 | x, y] = E[x0 | y] (Eq. 8)."""

    sigma: float = 100.0

    def __post_init__(self) -> None:
        check_range(self, sigma=(1e-3, 1e6))

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, problem: Problem, rng: RandnLike
    ) -> Tensor:
        run = self.begin(denoiser, problem, rng)
        return run.estimate(self.sigma * noise, self.sigma)
