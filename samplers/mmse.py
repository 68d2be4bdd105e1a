"""The minimum mean-square-error estimate in one evaluation."""

from dataclasses import dataclass

from torch import Tensor

from degradation import Problem
from samplers.base import Callback, Denoiser, RandnLike, check_range, register


@register("mmse")
@dataclass(frozen=True)
class MMSE:
    """D(σ·noise, σ) at σ = 100: the image drowns in noise, so E[x0 | x, y] = E[x0 | y] (Eq. 8)."""

    sigma: float = 100.0

    def __post_init__(self) -> None:
        check_range(self, sigma=(1e-3, 1e6))

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        problem: Problem,
        rng: RandnLike,
        callback: Callback | None = None,
    ) -> Tensor:
        """The estimate `[B, C, h, w]` for each problem of the batch."""
        estimate = denoiser(self.sigma * noise, self.sigma, problem)
        if callback:
            callback(0, estimate)
        return estimate
