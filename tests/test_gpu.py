"""What a GPU computes agrees with the CPU; skipped where there is none."""

import pytest
import torch
from exact_gaussian import Generator
from zero_shot_cases import QUICK

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
from networks import (
    Denoiser,
    fit_gaussian,
    fit_mixture,
    make_config,
    posterior,
    posterior_mean,
)
from networks.attention import BACKENDS, make_attention, use_backend
from networks.attention.fused import has_kernels

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


@torch.no_grad()
@pytest.mark.parametrize("stride", [2, 8])
def test_blur_of_larger_images_agrees(stride):
    """By transforms and by a matrix."""
    shape = 3, 64, 64
    cpu, gpu = (MotionBlur().sample(shape, stride, [1, 2], d) for d in ("cpu", "cuda"))
    x = torch.randn(2, 5, *shape)
    y = cpu.H(x)
    torch.testing.assert_close(gpu.H(x.cuda()).cpu(), y, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gpu.H_pinv(y.cuda(), 0.1).cpu(), cpu.H_pinv(y, 0.1), atol=1e-5,
                               rtol=1e-3)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "structure"), FAMILIES[:3], ids=lambda value: str(value))
def test_the_compiled_network_agrees(backend, family, structure):
    """Values and gradients, in bf16 too far apart to compare."""
    if backend == "natten" and not has_kernels():
        pytest.skip("natten is not installed with its kernels")
    denoiser = Denoiser(make_config("tiny")).cuda().eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, *SHAPE, device="cuda")
    operator = family.sample(SHAPE, structure, [1, 2], "cuda")
    problem = GaussianNoise(0.1).measure(operator, x, Draws([1, 2], "cuda"))

    def results() -> list[torch.Tensor]:
        with use_backend(backend):
            out = denoiser(x, 0.7, problem)
        weights = list(denoiser.net.mid_level.parameters())
        return [out.detach(), *torch.autograd.grad(out.square().sum(), weights)]

    expected = results()
    denoiser.compile()
    for found, exact in zip(results(), expected, strict=True):
        assert (found - exact).norm() <= 1e-3 * exact.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "kernel"), [((16, 16), 7), ((32, 24), 5), ((9, 40), 7)])
@pytest.mark.parametrize("streams", [1, 2])
def test_attention_agrees(backend, dtype, size, kernel, streams):
    if backend == "natten" and not has_kernels():
        pytest.skip("natten is not installed with its kernels")
    inputs = [torch.randn(2, *size, 2, 64) for _ in range(1 + 2 * streams)]
    inputs = [(x / x.norm(dim=-1, keepdim=True) * 3).to(dtype) for x in inputs]
    direction = torch.randn(2, *size, 2, 64)

    def results(backend: str, device: str) -> list[torch.Tensor]:
        q, *rest = (x.to(device).requires_grad_() for x in inputs)
        with use_backend(backend):
            attend = make_attention(*size, kernel, streams, torch.device(device))
        out = attend(q, list(zip(rest[::2], rest[1::2], strict=True))).float()
        gradients = torch.autograd.grad(out, [q, *rest], direction.to(device))
        return [x.float().cpu() for x in (out, *gradients)]

    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for found, expected in zip(results(backend, "cuda"), results("tiled", "cpu"), strict=True):
        assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize(("family", "structure"), FAMILIES, ids=lambda value: str(value))
def test_exact_posteriors_agree(family, structure):
    prior = fit_mixture(torch.randn(300, *SHAPE), 2, iterations=2)
    x = torch.randn(2, *SHAPE)
    problem = GaussianNoise(0.1).measure(family.sample(SHAPE, structure, [1, 2]), x, Draws([1, 2]))
    expected = posterior(prior, problem)(x, 0.5)
    found = posterior(prior, problem.to("cuda"))(x.cuda(), 0.5)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("family", "structure"), FAMILIES, ids=lambda value: str(value))
def test_baselines_agree(family, structure):
    prior = fit_gaussian(torch.randn(900, *SHAPE))
    x = torch.randn(2, *SHAPE)
    problem = GaussianNoise(0.1).measure(family.sample(SHAPE, structure, [1, 2]), x, Draws([1, 2]))
    moved = problem.to("cuda")
    for restore in (
        lambda problem: problem.pinv(),
        baselines.constant_fill,
        lambda problem: posterior_mean(prior, problem),
    ):
        torch.testing.assert_close(restore(moved).cpu(), restore(problem), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("sampler", QUICK.values(), ids=QUICK.keys())
@pytest.mark.parametrize(("family", "structure"), FAMILIES[:3], ids=lambda value: str(value))
def test_zero_shot_samplers_agree(sampler, family, structure):
    x = torch.randn(2, *SHAPE)
    problem = GaussianNoise(0.1).measure(family.sample(SHAPE, structure, [1, 2]), x, Draws([1, 2]))

    def denoiser(x, sigma, given):
        return 0.3 * x.roll(1, -1) / (0.3 + sigma**2) + 0.1 * x.tanh()

    found = sampler(denoiser, x.cuda(), problem.to("cuda"), Draws([3, 4], "cuda")).cpu()
    expected = sampler(denoiser, x, problem, Draws([3, 4]))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", QUICK.values(), ids=QUICK.keys())
def test_zero_shot_samplers_do_not_wait_for_the_device(sampler):
    x, draws = torch.randn(2, *SHAPE, device="cuda"), Draws([1, 2], "cuda")
    operator = MatrixDegradation().sample(SHAPE, None, [1, 2], "cuda")
    problem = GaussianNoise(0.1).measure(operator, x, draws)
    noise = Generator(device="cuda")
    sampler(lambda x, sigma, given: 0.5 * x, x, problem, noise)  # first calls set libraries up
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler(lambda x, sigma, given: 0.5 * x, x, problem, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
