"""The minimum mean-square-error estimate in one evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from degradation import Problem
from samplers.base import Denoiser, RandnLike, Sampler, check_range, register
from samplers.indi import InDI


@register("mmse")
@dataclass(frozen=True)
class MMSE(Sampler):
    """D(σ·noise, σ) at σ = 100: the image drowns in noise, so E[x0 | x, y] = E[x0 | y] (Eq. 8)."""

    title: ClassVar[str] = "MMSE"
    objectives: ClassVar[frozenset[str]] = frozenset({"denoising", "mmse"})

    sigma: float = 100.0

    def __post_init__(self) -> None:
        check_range(self, sigma=(1e-3, 1e6))

    def evaluations(self) -> int:
        return 1

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, problem: Problem, rng: RandnLike
    ) -> Tensor:
        run = self.begin(denoiser, problem, rng)
        return run.estimate(self.sigma * noise, self.sigma)


def one_step(objective: str) -> Sampler:
    """What gives the MMSE estimate of a network of this objective, in one evaluation."""
    return InDI(num_steps=1) if objective == "indi" else MMSE()
