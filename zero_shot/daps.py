"""DAPS: annealed noise, between whose levels the samples are decoupled."""

import torch
from torch import Tensor

from samplers.base import OnGrid, Run, bounded, one_of, register
from samplers.euler import Euler
from zero_shot.base import ZeroShot, column, explain

_TAU = 0.01


@register("daps")
class DAPS(ZeroShot, OnGrid):
    """Zhang et al., "Improving diffusion inverse problem solving with decoupled noise annealing".

    CVPR 2025, Algorithm 1. At each of num_steps levels: x̂0, by ode_steps of Euler's method on the
    probability-flow ODE from level σ; a sample of p(x0 | x̂0, y) ∝ N(y; Hx0, τ²I)·N(x0; x̂0, σ²I);
    noise of the next level. The last level returns that sample.

    inner "langevin": langevin_steps steps of size lr/0.01² over the curvature ‖H‖²/τ² + 1/σ², which
    falls linearly to lr_last of that over the run. "exact": the same density drawn at once, H being
    linear. τ is the noise level, but at least 0.01, or `tau`. The authors' files have τ = 0.01 at
    any noise level and steps of size lr whatever the curvature: the same for ‖H‖ = 1 and σ well
    above 0.01. Ours are at most 1.5 over the curvature; theirs diverge at 2 and end in NaN.
    Their ODE takes ode_steps steps that end at ode_sigma_min, ours one less, and the last to 0.

    released: returns x̂0 of the last level, as InvFusion's released code does; nothing draws that
    towards y, and it lacks the variance of level sigma_min.
    """

    title = "DAPS"

    num_steps: int = 200
    sigma_min: float = 0.1
    sigma_max: float = 100.0
    ode_steps: int = bounded(5, 2, 10**6)
    ode_sigma_min: float = bounded(0.01, 1e-9, "sigma_min")
    inner: str = one_of("langevin", "exact")
    langevin_steps: int = bounded(100, 1, 10**6)
    lr: float = bounded(1e-4, 1e-12, 1e3)
    lr_last: float = bounded(0.01, 1e-9, 1)
    tau: float | None = bounded(None, 1e-6, 1e3)
    released: bool = False

    def evaluations(self) -> int:
        return self.num_steps * self.ode_steps

    @torch.no_grad()
    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        # The last level is sigma_min up to rounding, and may be that of the ODE.
        ode = Euler(self.ode_steps, min(self.ode_sigma_min, sigma), sigma, self.rho)
        x = ode(run.denoiser, x / sigma, run.told, run.rng)
        if self.released and not following:
            return x
        tau = run.problem.levels.clamp(min=_TAU)
        if self.tau is not None:
            tau = torch.full_like(tau, self.tau)
        if self.inner == "exact":
            x = explain(run.problem, x, sigma, tau, run.rng)
        else:
            x = self._langevin(run, x, sigma, tau)
        return x + following * run.rng.randn_like(x) if following else x

    def _langevin(self, run: Run, mean: Tensor, sigma: float, tau: Tensor) -> Tensor:
        """Unadjusted Langevin steps on −‖y − Hx‖²/(2τ²) − ‖x − mean‖²/(2σ²) from the mean."""
        operator, problem = run.problem.degradation, run.problem
        curvature = (operator.largest_gain / tau).square() + 1 / sigma**2
        rate = self.lr / _TAU**2 * (1 + run.index / self.num_steps * (self.lr_last - 1))
        lr, variance = column(min(rate, 1.5) / curvature), column(tau.square())
        x, spread = mean, (2 * lr).sqrt()
        for _ in range(self.langevin_steps):
            data = operator.H_adjoint(problem.residual(x)) / variance
            x = x + lr * (data - (x - mean) / sigma**2) + spread * run.rng.randn_like(x)
        return x
