"""DEIS: the probability-flow ODE by polynomials through the last slopes."""

import numpy as np
from torch import Tensor

from samplers.base import OnGrid, Run, bounded, register


@register("deis")
class DEIS(OnGrid):
    """Zhang and Chen, "Fast sampling of diffusion models with exponential integrator", 2023, tAB.

    x' = x + Σ Cⱼεⱼ with the last slopes εⱼ = (x − D)/σ of dx/dσ = ε(x, σ) and Cⱼ the integrals from
    σ to σ' of the Lagrange polynomials through the last `order` levels: Adams and Bashforth's
    method, of that order, the first steps of lower ones. In EDM's time, t = σ, the paper's variants
    tAB and ρAB are this one. num_steps evaluations.
    """

    num_steps: int = 20
    order: int = bounded(3, 1, 4)

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        if following == sigma:  # all levels are one
            return x
        latest = sigma, (x - run.estimate(x, sigma)) / sigma
        run.memory = [latest, *(run.memory or [])[: self.order - 1]]
        levels, slopes = zip(*run.memory, strict=True)
        weights = adams_bashforth(list(levels), following)
        return x + sum(w * slope for w, slope in zip(weights, slopes, strict=True))


def adams_bashforth(nodes: list[float], end: float) -> list[float]:
    """Integrals from nodes[0] to `end` of the Lagrange polynomials through the nodes.

    Taken in units of the step, where they are well conditioned.
    """
    width = end - nodes[0]
    places = (np.array(nodes) - nodes[0]) / width
    weights = []
    for j, place in enumerate(places):
        others = np.delete(places, j)
        area = np.poly1d(others, r=True).integ()(1.0) / np.prod(place - others)
        weights.append(float(width * area))
    return weights
