"""What a GPU computes agrees with the CPU; skipped where there is none."""

import pytest
import torch

from degradation import (
    Colourisation,
    Draws,
    GaussianNoise,
    Hadamard,
    MatrixDegradation,
    MissingPatches,
    MotionBlur,
    NoDegradation,
)
from metrics import baselines
from networks import Denoiser, fit_gaussian, make_config, posterior_mean

pytestmark = pytest.mark.gpu
SHAPE = (3, 16, 16)
FAMILIES = [
    (MotionBlur(), 4),
    (MissingPatches(), None),
    (MatrixDegradation(), None),
    (Hadamard(), None),
    (Colourisation(of=MotionBlur()), 4),
]


def test_draws_agree():
    cpu, gpu = Draws([1, 2]), Draws([1, 2], "cuda")
    assert torch.equal(cpu.uniform((1000,), "a"), gpu.uniform((1000,), "a").cpu())
    torch.testing.assert_close(cpu.normal((1000,), "a"), gpu.normal((1000,), "a").cpu())


@pytest.mark.parametrize(("family", "structure"), FAMILIES, ids=lambda value: str(value))
def test_operators_agree(family, structure):
    cpu = family.sample(SHAPE, structure, [1, 2])
    gpu = family.sample(SHAPE, structure, [1, 2], "cuda")
    x = torch.randn(2, 5, *SHAPE)
    y = cpu.H(x)
    torch.testing.assert_close(gpu.H(x.cuda()).cpu(), y, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gpu.H_pinv(y.cuda(), 0.1).cpu(), cpu.H_pinv(y, 0.1))


@pytest.mark.parametrize(
    ("family", "structure"), [*FAMILIES, (NoDegradation(), None)], ids=lambda value: str(value)
)
@torch.no_grad()
def test_the_network_agrees(family, structure):
    denoiser = Denoiser(make_config("tiny")).eval()
    for parameter in denoiser.parameters():
        parameter.copy_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, *SHAPE)
    operator = family.sample(SHAPE, structure, [1, 2])
    problem = GaussianNoise(0.1).measure(operator, x, Draws([1, 2]))
    expected = denoiser(x, 0.7, problem)
    found = denoiser.cuda()(x.cuda(), 0.7, problem.to("cuda")).cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "structure"), FAMILIES, ids=lambda value: str(value))
def test_baselines_agree(family, structure):
    prior = fit_gaussian(torch.randn(900, *SHAPE))
    x = torch.randn(2, *SHAPE)
    problem = GaussianNoise(0.1).measure(family.sample(SHAPE, structure, [1, 2]), x, Draws([1, 2]))
    moved = problem.to("cuda")
    for restore in (
        baselines.pinv,
        baselines.constant_fill,
        baselines.smooth,
        lambda problem: posterior_mean(prior, problem),
    ):
        torch.testing.assert_close(restore(moved).cpu(), restore(problem), atol=1e-4, rtol=1e-3)
