"""A Gaussian prior with its exact denoiser, flow and posterior; sources of noise for samplers."""

from collections.abc import Callable
from typing import Any

import torch
from helpers import dense
from torch import Tensor

from degradation import Problem


class Gaussian:
    """x ~ N(mean, C), C = Q diag(variances) Qᵀ, and D(x; σ) = m + C(C + σ²I)⁻¹(x − m)."""

    def __init__(self, variances: Tensor, mean: Tensor, Q: Tensor):
        self.variances, self.mean, self.Q = variances, mean, Q

    def gain(self, x: Tensor, gain: Tensor) -> Tensor:
        """m + Q diag(gain) Qᵀ(x − m)."""
        return (((x.flatten(1) - self.mean) @ self.Q * gain) @ self.Q.T + self.mean).view(x.shape)

    def __call__(self, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        return self.gain(x, self.variances / (self.variances + sigma**2))

    def flow(self, x: Tensor, sigma: float) -> Tensor:
        """Where the probability-flow ODE takes x from level σ: x(0) = m + √(c/(c+σ²))(x − m)."""
        return self.gain(x, (self.variances / (self.variances + sigma**2)).sqrt())

    def coordinates(self, x: Tensor) -> Tensor:
        """Qᵀ(x − m) / √c, standard normal if x is a sample."""
        return ((x.flatten(1) - self.mean) @ self.Q) / self.variances.sqrt()

    @property
    def covariance(self) -> Tensor:
        return (self.Q * self.variances) @ self.Q.T

    def posterior(self, problem: Problem, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean `[n]` and covariance `[n, n]` given the first problem of a batch.

        noise: covariance of the noise on y, where it is not noise_level² I.
        """
        H, C = dense(problem.degradation[[0]])[0].double(), self.covariance
        if noise is None:
            noise = problem.levels[0].double() ** 2 * torch.eye(len(H), dtype=torch.float64)
        S = torch.linalg.pinv(H @ C @ H.T + noise, rtol=1e-12, hermitian=True)
        gain = C @ H.T @ S
        return self.mean + gain @ (problem.y[0].double() - H @ self.mean), C - gain @ H @ C

    def single(self) -> "Gaussian":
        """The same in float32."""
        return Gaussian(self.variances.float(), self.mean.float(), self.Q.float())


def recorded_denoiser(meta: dict[str, Any]) -> Callable[..., Tensor]:
    """The denoiser of recorded runs, exact for their prior: float64 inside, float32 out."""
    variances, Q = torch.linalg.eigh(meta["C"].double())
    exact = Gaussian(variances.clamp(min=0), meta["mean"].double(), Q)
    return lambda x, sigma, problem: exact(x.double(), sigma, problem).float()


class NoNoise:
    """A source of noise that must not be asked."""

    def randn_like(self, x: Tensor) -> Tensor:
        raise AssertionError("a deterministic sampler draws no noise")


class Generator:
    """Noise from torch's own generator, many times as fast as counters."""

    def __init__(self, seed: int = 0, device: str = "cpu"):
        self.generator = torch.Generator(device).manual_seed(seed)

    def randn_like(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=x.device)


class Replay:
    """Recorded draws, one after the other."""

    def __init__(self, bank: Tensor):
        self.bank, self.calls = bank, 0

    def randn_like(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.bank[self.calls - 1].to(x)
