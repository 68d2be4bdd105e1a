"""DEIS: the probability-flow ODE by polynomials through the last slopes."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial
from torch import Tensor

from degradation import Problem
from samplers.base import Callback, Denoiser, RandnLike, check_range, karras_grid, register


@register("deis")
@dataclass(frozen=True)
class DEIS:
    """Zhang and Chen, "Fast sampling of diffusion models with exponential integrator", 2023, tAB.

    dx/dσ = ε(x, σ) is linear in nothing but ε, so x' = x + Σ Cⱼεⱼ with Cⱼ the integral from σ to σ'
    of the Lagrange polynomials through the last `order` levels: Adams and Bashforth's method, of
    that order. In EDM's time, t = σ, the variants tAB and ρAB of the paper are this one.
    num_steps evaluations.
    """

    num_steps: int = 20
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    order: int = 3

    def __post_init__(self) -> None:
        check_range(self, num_steps=(2, 10**6), sigma_min=(1e-9, self.sigma_max))
        check_range(self, sigma_max=(1e-9, 1e6), rho=(1e-3, 1e3), order=(1, 4))

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        problem: Problem,
        rng: RandnLike,
        callback: Callback | None = None,
    ) -> Tensor:
        """One posterior sample for each problem of the batch."""
        grid = karras_grid(self.num_steps, self.sigma_min, self.sigma_max, self.rho).tolist()
        x = noise * grid[0]
        slopes: list[Tensor] = []
        for step, sigma in enumerate(grid[:-1]):
            estimate = denoiser(x, sigma, problem)
            if callback:
                callback(step, estimate)
            slopes = [(x - estimate) / sigma, *slopes[: self.order - 1]]
            nodes = [grid[step - j] for j in range(len(slopes))]
            weights = adams_bashforth(nodes, grid[step + 1])
            x = x + sum(w * slope for w, slope in zip(weights, slopes, strict=True))
        return x


def adams_bashforth(nodes: list[float], end: float) -> list[float]:
    """Integrals from nodes[0] to `end` of the Lagrange polynomials through the nodes.

    Taken in units of the step, where they are well conditioned.
    """
    width = end - nodes[0]
    places = (np.array(nodes) - nodes[0]) / width
    weights = []
    for j, place in enumerate(places):
        others = np.delete(places, j)
        area = Polynomial.fromroots(others).integ()(1.0) / np.prod(place - others)
        weights.append(float(width * area))
    return weights
