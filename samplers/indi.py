"""Inversion by direct iteration (Delbracio and Milanfar, TMLR 2023)."""

from torch import Tensor

from samplers.base import Run, Sampler, bounded, register


@register("indi")
class InDI(Sampler):
    """From H†y + epsilon·noise to an image in num_steps steps, for networks trained so.

    The network has E[x0 | x_t], x_t = (1 − t)x0 + t·H†y + t·epsilon·n, with the time t in place of
    the noise level. A step from t to t − δ: x ← (δ/t)·E[x0 | x] + (1 − δ/t)·x. With num_steps=1 the
    result is the MMSE estimate.
    """

    title = "InDI"
    objectives = frozenset({"indi"})

    num_steps: int = bounded(50, 1, 10**6)
    epsilon: float = bounded(0.01, 0, 1e3)

    def evaluations(self) -> int:
        return self.num_steps

    def sample(self, run: Run, noise: Tensor) -> Tensor:
        x = run.problem.pinv() + self.epsilon * noise
        for remaining in range(self.num_steps, 0, -1):
            x = x + (run.estimate(x, remaining / self.num_steps) - x) / remaining
        return x
