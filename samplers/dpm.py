"""DPM-Solver++(2M): two steps of memory in the logarithm of the noise level."""

import math

from torch import Tensor

from samplers.base import OnGrid, Run, bounded, register


@register("dpm")
class DPM(OnGrid):
    """Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models".

    2022, Algorithm 2 in variance-exploding notation: with λ = −ln σ, h = λ' − λ and D̂ the estimate
    extrapolated from the last two, x' = (σ'/σ)x + (1 − e⁻ʰ)D̂ for the probability-flow ODE, second
    order. `eta` is the share of the reverse SDE's noise: at 1 it is the SDE itself, x' =
    (σ'/σ)e⁻ʰx + (1 − e⁻²ʰ)D̂ + σ'√(1 − e⁻²ʰ)z. num_steps evaluations.
    """

    num_steps: int = 20
    eta: float = bounded(0.0, 0, 1e3)

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        estimate = run.estimate(x, sigma)
        if not following:
            return estimate
        if following == sigma:  # all levels are one
            return x
        h = math.log(sigma / following)
        forward = estimate
        if run.memory is not None:
            before, width = run.memory
            forward = estimate + h / (2 * width) * (estimate - before)
        run.memory = estimate, h
        kept = math.exp(-(1 + self.eta) * h)  # of x; the noise fills up what it loses
        x = kept * x + (1 - kept) * forward
        if self.eta:
            spread = following * math.sqrt(-math.expm1(-2 * self.eta * h))
            x = x + spread * run.rng.randn_like(x)
        return x
