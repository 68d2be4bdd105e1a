"""MGPS: a variational fit at a level half way to zero guides every step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from samplers.base import Run, bounded, one_of, register
from zero_shot.base import ZeroShot, column, ddpm_grid, linearised

# Gradient steps at index i of N: the published settings of three data sets.
SCHEDULES: dict[str, Callable[[int, int], int]] = {
    "ffhq": lambda i, n: 20 if i > 20 and (i >= n - 5 or i % 10 == 0) else 2,
    "imagenet": lambda i, n: 2 if i <= 10 else 20 if i >= n - 5 else 10 if i % 20 == 0 else 2,
    "mixture": lambda i, n: 20 if i > 20 and (i >= n - 10 or i % 10 == 0) else 2,
}


@register("mgps")
class MGPS(ZeroShot):
    """Janati et al., "A mixture-based framework for guiding diffusion models", 2025, Algorithm 1.

    On num_steps times t of DDPM, with s the time below and ℓ that at ⌊midpoint·s⌋, at least 1:
    q = N(m, diag v) is fitted to p(x_ℓ | x_t)·p(y | D(x_ℓ)) by as many Adam steps of size `lr` as
    `schedule` has, a sample u of it gives x0 = D(u), and x_s is drawn between x_t and u. The
    transition p(x_ℓ | x_t) is DDPM's, through D(x_t). By default 1764 evaluations, 1170 with a
    backward pass, the count of InvFusion's paper: no warm start, and t ends at the fourth time,
    where s is the third and ℓ the second.

    The noise level is taken for at least `noise_floor`. Adam works on √ᾱ_ℓ·x, the scale of the
    original, which the size of its steps refers to.
    """

    title = "MGPS"
    needs = frozenset({"gradient"})

    num_steps: int = bounded(300, 4, 1000)
    midpoint: float = bounded(0.5, 0.01, 0.99)
    schedule: str = one_of(*SCHEDULES)
    lr: float = bounded(0.03, 1e-9, 1e3)
    noise_floor: float = bounded(0.05, 1e-6, 1e3)

    def evaluations(self) -> int:
        fits = SCHEDULES[self.schedule]
        return sum(2 + fits(t, self.num_steps) for t in range(3, self.num_steps))

    @torch.no_grad()
    def sample(self, run: Run, noise: Tensor) -> Tensor:
        grid, rng = ddpm_grid(self.num_steps), run.rng
        x = x0 = grid[-1] * noise
        for step, t in enumerate(range(self.num_steps - 1, 2, -1)):
            low = max(1, int(self.midpoint * (t - 1)))
            sigma_t, sigma_s, sigma = grid[t], grid[t - 1], grid[low]
            estimate = run.estimate(x, sigma_t)
            mean, spread = bridge(estimate, 0.0, x, sigma_t, sigma)
            start, _ = bridge(x0 if step else estimate, 0.0, x, sigma_t, sigma)
            steps = SCHEDULES[self.schedule](t, self.num_steps)
            m, v = self._fit(run, start, mean, spread, sigma, steps)
            u = m + v * rng.randn_like(x)
            x0 = run.estimate(u, sigma)
            mean, spread = bridge(u, sigma, x, sigma_t, sigma_s)
            x = mean + spread * rng.randn_like(x)
        return x0

    def _fit(
        self, run: Run, start: Tensor, mean: Tensor, spread: float, sigma: float, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q that minimise −E log p(y | D(u)) + KL(q ‖ N(mean,
        spread²I)), one sample of u a step."""
        level = column(run.problem.levels.clamp(min=self.noise_floor))
        scale = 1 / math.sqrt(1 + sigma**2)  # √ᾱ
        m, log_v = scale * start, torch.full_like(start, math.log(scale * spread))
        adam = torch.optim.Adam([m, log_v], lr=self.lr)
        centre, variance = scale * mean, (scale * spread) ** 2
        for _ in range(steps):
            v, z = log_v.exp(), run.rng.randn_like(m)
            estimate, pullback = linearised(run, (m + v * z) / scale, sigma)
            residual = run.problem.residual(estimate)
            slope = run.problem.degradation.H_adjoint(residual) / level.square()
            data = -pullback(slope) / scale
            m.grad = data + (m - centre) / variance
            log_v.grad = data * v * z + v.square() / variance - 1
            adam.step()
        return m / scale, log_v.exp() / scale


def bridge(
    low: Tensor, sigma_low: float, high: Tensor, sigma_high: float, sigma: float
) -> tuple[Tensor, float]:
    """Mean and standard deviation of x_σ between x at a lower and at a higher noise level."""
    below, above = sigma**2 - sigma_low**2, sigma_high**2 - sigma**2
    share = below / (below + above)
    return low + share * (high - low), math.sqrt(share * above)
