"""MCGdiff: particles that are weighted by how well they explain the measurement."""

from itertools import pairwise

import torch
from torch import Tensor

from samplers.base import OnGrid, RandnLike, Run, bounded, prepared, register
from zero_shot.base import ZeroShot, ancestral, spectral


@register("mcgdiff")
class MCGdiff(ZeroShot, OnGrid):
    """Cardoso et al., "Monte Carlo guided diffusion for Bayesian linear inverse problems", 2024.

    Algorithm 1 on the ancestral chain. In coordinates Vᵀx a measurement is ȳ = Uᵀy/s with noise of
    τ = σₙ/s. At level σ a particle counts as N(ȳ; Vᵀx, σ² + τ²): moves are drawn from the chain's
    times that of the next level, weights are the mass of this over the present one, and particles
    are drawn anew by weight where fewer than half are effective. One particle is returned. As their
    number grows this is the posterior under the chain, which the number of steps makes exact.

    The original has variance σ² − τ² and lets a coordinate go where σ = τ, for which the levels
    must hold every τ; here any levels serve, and at σ = 0 the likelihood is exact. Every particle
    takes evaluations of its own, (num_steps − 1)·particles + 1 in all; in one call of the denoiser
    there are as many particles of each image as make `batch` images, or one. For images of many
    measurements few particles are far too few.
    """

    title = "MCGdiff"
    needs = frozenset({"spectrum"})

    num_steps: int = 100
    particles: int = bounded(32, 1, 10**6)
    batch: int = bounded(32, 1, 10**6)

    def evaluations(self) -> int:
        return (self.num_steps - 1) * self.particles + 1

    @torch.no_grad()
    def sample(self, run: Run, noise: Tensor) -> Tensor:
        grid, rng = self.grid(), run.rng
        run.memory = {1: run.told}  # by the number of particles
        operator, y, tau = spectral(run.problem)
        # All below: [B, K, R] coordinates of K particles.
        y, tau, seen = y[:, None], tau[:, None], operator.s[:, None] > 0

        def drawn(
            x: Tensor, z: Tensor, known: Tensor, spread: float, width: Tensor
        ) -> tuple[Tensor, Tensor]:
            """x + spread·z, in the measured coordinates `known` rather times N(ȳ; ·, width)."""
            gain = spread**2 / (spread**2 + width)
            free = operator.Vt(z)
            new = known + gain * (y - known) + spread * (1 - gain).sqrt() * free
            return x + spread * z + operator.V(new - known - spread * free), new

        def log_density(x: Tensor, variance: Tensor) -> Tensor:
            """Of N(ȳ; x, variance), up to what all particles share."""
            return -torch.where(seen, (y - x).square() / variance, 0).sum(-1) / 2

        others = noise[:, None].expand(-1, self.particles - 1, *noise.shape[1:])
        z = torch.cat((noise[:, None], rng.randn_like(others)), 1)
        zero = z.new_zeros(())
        x, known = drawn(zero, z, zero, grid[0], grid[0] ** 2 + tau.square())
        weights = x.new_zeros(x.shape[:2])
        for step, (sigma, following) in enumerate(pairwise(grid[:-1])):
            estimate = _of_particles(run, x, sigma, self.batch)
            along, spread = ancestral(sigma, following)
            mean = estimate + along * (x - estimate) / sigma
            middle, width = operator.Vt(mean), following**2 + tau.square()
            weights = weights + log_density(middle, spread**2 + width)
            weights = weights - log_density(known, sigma**2 + tau.square())
            index, weights = resampled(weights, uniform(rng, weights))
            x, known = drawn(
                pick(mean, index), rng.randn_like(x), pick(middle, index), spread, width
            )
        chosen = systematic(weights.softmax(1), uniform(rng, weights), 1)
        estimate = run.estimate(pick(x, chosen)[:, 0], grid[-2])
        gain = grid[-2] ** 2 / (grid[-2] ** 2 + tau.square())
        known = operator.Vt(estimate)
        return estimate + operator.V((gain * (y - known[:, None]))[:, 0])


def _of_particles(run: Run, x: Tensor, sigma: float, batch: int) -> Tensor:
    """E[x0 | x] of K particles of each image, `[B, K, C, h, w]`.

    In calls of as many particles as keep within `batch` images, at least one of each image.
    """
    parts = []
    for part in x.split(max(1, batch // len(x)), 1):
        blocks = part.movedim(1, 0).flatten(0, 1)  # as `Problem.expand` orders them
        count = part.shape[1]
        if count not in run.memory:
            run.memory[count] = prepared(run.denoiser, run.told.expand(count))
        estimate = run.denoiser(blocks, sigma, run.memory[count])
        parts.append(estimate.unflatten(0, (count, -1)).movedim(0, 1))
    return torch.cat(parts, 1)


def resampled(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the particles to go on with, and their log weights, `[B, K]` both.

    Every particle goes on if their effective number, 1/Σw², is at least K/2.
    """
    shares, k = weights.softmax(1), weights.shape[1]
    enough = shares.square().sum(1, keepdim=True) <= 2 / k
    everyone = torch.arange(k, device=weights.device)
    index = torch.where(enough, everyone, systematic(shares, u, k))
    return index, torch.where(enough, weights, 0)


def systematic(shares: Tensor, u: Tensor, count: int) -> Tensor:
    """Indices `[B, count]`, drawn by their shares `[B, K]` from one uniform number u `[B, 1]`."""
    positions = (torch.arange(count, device=u.device) + u) / count
    index = torch.searchsorted(shares.cumsum(1), positions, right=True)
    return index.clamp(max=shares.shape[1] - 1)


def uniform(rng: RandnLike, like: Tensor) -> Tensor:
    """A uniform number for each image, `[B, 1]`."""
    return torch.special.ndtr(rng.randn_like(like[:, :1]))


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values[b, index[b]]: `[B, K, ...]` and `[B, n]` to `[B, n, ...]`."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]
