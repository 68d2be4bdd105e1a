"""The minimum mean-square-error estimate in one evaluation."""

from torch import Tensor

from samplers.base import Run, Sampler, bounded, register
from samplers.indi import InDI


@register("mmse")
class MMSE(Sampler):
    """D(σ·noise, σ) at σ = 100: the image drowns in noise, so E[x0 | x, y] = E[x0 | y] (Eq. 8)."""

    title = "MMSE"
    objectives = frozenset({"denoising", "mmse"})

    sigma: float = bounded(100.0, 1e-3, 1e6)

    def evaluations(self) -> int:
        return 1

    def sample(self, run: Run, noise: Tensor) -> Tensor:
        return run.estimate(self.sigma * noise, self.sigma)


def one_step(objective: str) -> Sampler:
    """What gives the MMSE estimate of a network of this objective, in one evaluation."""
    return InDI(num_steps=1) if objective == "indi" else MMSE()
