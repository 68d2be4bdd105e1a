"""DAPS: annealed noise, between whose levels the samples are decoupled."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from degradation import Problem
from samplers.base import Callback, Denoiser, OnGrid, RandnLike, check_choice, check_range, register
from samplers.euler import Euler
from zero_shot.base import Prior, ZeroShot, column, explain, largest_gain


@register("daps")
@dataclass(frozen=True)
class DAPS(ZeroShot, OnGrid):
    """Zhang et al., "Improving diffusion inverse problem solving with decoupled noise annealing".

    CVPR 2025, Algorithm 1. At each of num_steps levels: x̂0, by ode_steps of Euler's method on the
    probability-flow ODE from level σ; a sample of p(x0 | x̂0, y) ∝ N(y; Hx0, τ²I)·N(x0; x̂0, σ²I);
    noise of the next level. The last level returns that sample.

    inner "langevin": langevin_steps steps of size `lr`, which falls linearly to lr·lr_last over the
    run. "exact": the same density drawn at once, H being linear. The authors' files keep τ at 0.01,
    here it is the noise level but at least `noise_floor`; their ODE takes ode_steps steps that end
    at ode_sigma_min, ours one less, and the last from there to 0. Steps are at most 1.5 over the
    curvature ‖H‖²/τ² + 1/σ²; theirs diverge at 2 and end in NaN.

    released: returns x̂0 of the last level, as InvFusion's released code does; nothing draws that
    towards y, and it lacks the variance of level sigma_min.
    """

    num_steps: int = 200
    sigma_min: float = 0.1
    sigma_max: float = 100.0
    ode_steps: int = 5
    ode_sigma_min: float = 0.01
    inner: str = "langevin"
    langevin_steps: int = 100
    lr: float = 1e-4
    lr_last: float = 0.01
    noise_floor: float = 0.01
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ode_steps=(2, 10**6), ode_sigma_min=(1e-9, self.sigma_min))
        check_range(self, langevin_steps=(1, 10**6), lr=(1e-12, 1e3), lr_last=(1e-9, 1))
        check_range(self, noise_floor=(1e-6, 1e3))
        check_choice(self, inner=("langevin", "exact"))

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        problem: Problem,
        rng: RandnLike,
        callback: Callback | None = None,
    ) -> Tensor:
        """One restoration of each problem."""
        prior, grid = Prior(denoiser, problem), self.grid()
        tau = problem.noise_level.clamp(min=self.noise_floor)
        curvature = (largest_gain(problem.degradation) / tau).square()
        x = grid[0] * noise
        for step, (sigma, following) in enumerate(pairwise(grid)):
            # The last level is sigma_min up to rounding, and may be that of the ODE.
            ode = Euler(self.ode_steps, min(self.ode_sigma_min, sigma), sigma, self.rho)
            x = ode(prior.denoiser, x / sigma, prior.problem, rng)
            if callback:
                callback(step, x)
            if self.released and not following:
                break
            if self.inner == "exact":
                x = explain(problem, x, sigma, tau, rng)
            else:
                rate = self.lr * (1 + step / self.num_steps * (self.lr_last - 1))
                stable = (1.5 / (curvature + 1 / sigma**2)).clamp(max=rate)
                x = self._langevin(problem, x, sigma, column(tau), column(stable), rng)
            if following:
                x = x + following * rng.randn_like(x)
        return x

    def _langevin(
        self, problem: Problem, mean: Tensor, sigma: float, tau: Tensor, lr: Tensor, rng: RandnLike
    ) -> Tensor:
        """Unadjusted Langevin steps on −‖y − Hx‖²/(2τ²) − ‖x − mean‖²/(2σ²) from the mean."""
        x, spread = mean, (2 * lr).sqrt()
        for _ in range(self.langevin_steps):
            data = problem.degradation.H_adjoint(problem.residual(x)) / tau.square()
            x = x + lr * (data - (x - mean) / sigma**2) + spread * rng.randn_like(x)
        return x
