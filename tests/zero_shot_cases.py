"""The zero-shot samplers at small sizes, and the small problems that they are tried on."""

from typing import Any

import pytest
import torch
from exact_gaussian import Gaussian
from helpers import gaussian
from torch import Tensor

from degradation import DenseMatrix, LinearOperator, Mask, Problem, StridedConvolution
from zero_shot import (
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DPS,
    MGPS,
    DDNMPlus,
    DiffPIR,
    MCGdiff,
    PiGDM,
    PnPDM,
    REDDiff,
)

SHAPE = (3, 4, 4)
NUMEL = 48

each_level = pytest.mark.parametrize("noise_level", [0.0, 0.1])

QUICK: dict[str, Any] = {
    "ddrm": DDRM(6),
    "ddnm": DDNM(6),
    "ddnm_plus": DDNMPlus(6),
    "dps": DPS(6),
    "pigdm": PiGDM(6),
    "pigdm score": PiGDM(6, form="score", eta=0.5),
    "daps": DAPS(3, ode_steps=2, langevin_steps=4),
    "daps exact": DAPS(3, ode_steps=2, inner="exact"),
    "daps released": DAPS(3, ode_steps=2, langevin_steps=4, released=True),
    "mgps": MGPS(7),
    "reddiff": REDDiff(6),
    "dds": DDS(6),
    "diffpir": DiffPIR(6),
    "pnpdm": PnPDM(6, iterations=3),
    "mcgdiff": MCGdiff(5, particles=3),
}
"""Every sampler with few steps."""

COUNTS = {
    "ddrm": (25, 0), "ddnm": (100, 0), "ddnm_plus": (100, 0), "dps": (1000, 1000),
    "pigdm": (100, 100), "daps": (1000, 0), "mgps": (1764, 1170), "reddiff": (1000, 0),
    "dds": (50, 0), "diffpir": (100, 0), "pnpdm": (3673, 0), "mcgdiff": (3169, 0),
}  # fmt: skip
"""Evaluations and backward passes by default."""


def make_prior(numel: int = NUMEL) -> Gaussian:
    Q, _ = torch.linalg.qr(gaussian(numel, numel))
    variances = torch.logspace(-2, 0.3, numel, dtype=torch.float64)
    return Gaussian(variances, 0.2 * gaussian(numel, seed=1), Q)


def operators(batch: int) -> dict[str, LinearOperator]:
    """One of each kind, float64 where that can be chosen."""
    mask = (gaussian(batch, 1, 4, 4) > 0).double()
    return {
        "mask": Mask(mask, SHAPE),
        "matrix": DenseMatrix(gaussian(batch, 9, NUMEL) / NUMEL**0.5, SHAPE),
        "blur": StridedConvolution(gaussian(batch, 3, 3).abs() / 9, 2, SHAPE),
    }


def posed(op: LinearOperator, noise_level: float | Tensor = 0.0, seed: int = 3) -> Problem:
    y = op.H(gaussian(len(op), *SHAPE, seed=seed).to(op.largest_gain))
    noise = torch.as_tensor(noise_level).to(y).reshape(-1, 1) * gaussian(*y.shape, seed=9).to(y)
    return Problem(op, y + noise * op.rows, noise_level)


def spectral() -> tuple[Problem, list[list[float]], Tensor, Tensor]:
    """Measurements whose τ lies above, between and below all levels; s, and Vᵀx and ȳ of it."""
    U, _ = torch.linalg.qr(gaussian(2, 6, 6, seed=4))
    V, _ = torch.linalg.qr(gaussian(2, 48, 48, seed=5))
    s = torch.tensor([[1.5, 0.9, 0.2, 0.05, 0.004, 0.0008], [1.2, 0.6, 0.3, 0.02, 0.001, 0.0]])
    op = DenseMatrix((U * s.double()[:, None]) @ V[:, :, :6].mT, SHAPE, tol=0.0)
    problem = posed(op, torch.tensor([0.1, 0.3], dtype=torch.float64))
    seen = (U.mT @ problem.y[..., None])[..., 0]
    return problem, s.tolist(), V, seen


def small() -> tuple[Gaussian, Problem]:
    """Twelve pixels, three measurements with noise."""
    Q, _ = torch.linalg.qr(gaussian(12, 12))
    prior = Gaussian(torch.logspace(-1, 0.3, 12).double(), 0.3 * gaussian(12, seed=1), Q)
    op = DenseMatrix(gaussian(1, 3, 12, seed=2) / 2, (3, 2, 2))
    return prior, Problem(op, gaussian(1, 3, seed=3), 0.2)
