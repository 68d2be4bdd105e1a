"""The tiny network with weights that hide nothing, and small problems for it."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from degradation import (
    Draws,
    GaussianNoise,
    Problem,
    get_family,
)
from networks import (
    Denoiser,
    NetworkConfig,
    make_config,
)

SHAPE = (3, 16, 16)
FAMILIES = [
    *("MissingPatches", "Box", "MotionBlur", "SRConv", "MatrixDegradation", "NoDegradation"),
    *("Hadamard", "Colourisation", "Bicubic"),
]


def randomised(config: NetworkConfig) -> Denoiser:
    """A network in evaluation mode with no zero-initialised layer left to hide a branch."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        denoiser = Denoiser(config)
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser.eval()


def tiny(conditioning: str = "invfusion", **changes: Any) -> Denoiser:
    return randomised(dataclasses.replace(make_config("tiny", conditioning), **changes))


def make_problem(family: str, batch: int = 2, noise_level: float = 0.0) -> Problem:
    """Operators of a family, and measurements of random images."""
    source = get_family(family)
    seeds = list(range(3, 3 + batch))
    operators = source.sample(SHAPE, source.structure(3), seeds)
    x = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return GaussianNoise(noise_level).measure(operators, x, Draws(seeds))


def noisy(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs x `[B, C, h, w]` and their noise levels `[B]`."""
    sigma = torch.tensor([0.05, 0.7, 6.0])[:batch]
    x = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(7))
    return x * (0.5 + sigma[:, None, None, None]), sigma


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
