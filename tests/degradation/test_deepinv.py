"""Physics of deepinv as our operators, and our operators as physics of deepinv."""

import sys
from typing import Any

import pytest
import torch
from helpers import assert_near, gaussian, matrix, regularised_inverse
from torchvision_on_cpu import declare_operators

from degradation import (
    DenseMatrix,
    Draws,
    FromPhysics,
    GaussianNoise,
    LinearOperator,
    Mask,
    PhysicsFamily,
    StridedConvolution,
    ValidRegion,
    to_deepinv,
)
from degradation import physics as ours
from networks import Denoiser, make_config
from samplers import Heun
from training.config import TrainConfig
from training.loop import Trainer

SHAPE = (3, 16, 16)
FLOOR = 0.02
PHYSICS = ("inpainting", "blur", "valid blur", "blur by FFT", "downsampling", "tomography", "MRI")
every_physics = pytest.mark.parametrize("name", PHYSICS)


@pytest.fixture
def deepinv() -> Any:
    declare_operators()
    return pytest.importorskip("deepinv")


def physics(deepinv: Any, name: str) -> tuple[Any, tuple[int, int, int]]:
    """A physics, and the shape of its images."""
    P, line = deepinv.physics, torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = (line[:, None] * line)[None, None]
    two = (2, 16, 16)  # real and imaginary part
    sampled = (gaussian(1, 1, 16, 16) > 0.3).float().expand(1, 2, 16, 16)
    made = {
        "inpainting": lambda: P.Inpainting(SHAPE, mask=(gaussian(*SHAPE) > 0).float()),
        "blur": lambda: P.Blur(filter=kernel, padding="reflect"),
        "valid blur": lambda: P.Blur(filter=kernel, padding="valid"),
        "blur by FFT": lambda: P.BlurFFT(img_size=SHAPE, filter=kernel),
        "downsampling": lambda: P.Downsampling(
            img_size=SHAPE, factor=2, filter="bicubic", padding="circular"
        ),
        "tomography": lambda: P.Tomography(angles=8, img_width=16, normalize=True),
        "MRI": lambda: P.MRI(mask=sampled, img_size=two),
    }
    return made[name](), two if name == "MRI" else SHAPE


# ---- theirs as ours


@every_physics
def test_maps_against_dense_matrices(deepinv: Any, name: str) -> None:
    source, shape = physics(deepinv, name)
    op = FromPhysics(source, shape, floor=FLOOR)
    x = gaussian(1, *shape, dtype=torch.float32)
    assert torch.equal(op.H(x), source.A(x).flatten(1))
    M = (op.rows.shape[1],)
    H = matrix(op.H, 1, shape, torch.float32)
    assert_near(matrix(op.H_adjoint, 1, M, torch.float32), H.mT, 1e-5)
    for level in (0.0, 0.1):
        sigma = torch.tensor([level]).clamp(min=FLOOR * op.norm.item())
        y = gaussian(1, 4, *M, dtype=torch.float32)
        expected = y.double() @ regularised_inverse(H, sigma).mT
        assert_near(op.H_pinv(y, level).flatten(2), expected, 2e-4)
    assert torch.equal(op.rows[0], H[0].abs().amax(-1) > 1e-6 * H.abs().max())  # not rounding


@pytest.mark.parametrize("name", ["blur", "tomography", "MRI"])
def test_training_and_sampling(deepinv: Any, name: str) -> None:
    source, shape = physics(deepinv, name)
    family = PhysicsFamily(source, {"floor": FLOOR})
    config = TrainConfig(preset="tiny", precision="fp32", batch=2, ramp=0, noise_level=0.05)
    denoiser = Denoiser(make_config("tiny", "invfusion", shape))
    trainer = Trainer(config, denoiser, family, torch.device("cpu"))
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    assert trainer.step(images, torch.full((2,), -1), 0.0).isfinite()
    assert trainer.progress.skipped == 0
    op = family.sample(shape, None, [1, 2])
    draws = Draws([1, 2])
    problem = GaussianNoise(0.05).measure(op, images.float() / 127.5 - 1, draws)
    with torch.no_grad():
        sample = Heun(num_steps=2)(denoiser, draws.normal(shape, "latent"), problem, draws)
    assert sample.shape == (2, *shape) and sample.isfinite().all()


# ---- ours as theirs


def operators() -> dict[str, LinearOperator]:
    kernel = torch.rand(2, 3, 3) / 9
    return {
        "mask": Mask((gaussian(2, 1, 16, 16) > 0).float()),
        "convolution": StridedConvolution(kernel, 2, SHAPE),
        "matrix": DenseMatrix(gaussian(2, 20, 768, dtype=torch.float32) / 28, SHAPE),
        "valid": ValidRegion(kernel, 2, SHAPE),
    }


@pytest.mark.parametrize("name", ["mask", "convolution", "matrix", "valid"])
def test_our_operators_in_deepinv(deepinv: Any, name: str) -> None:
    op = operators()[name]
    theirs = to_deepinv(op)
    assert isinstance(theirs, deepinv.physics.LinearPhysics)
    x = gaussian(2, *SHAPE, dtype=torch.float32)
    y = theirs.A(x)
    assert torch.equal(y.flatten(1), op.H(x))
    assert y.ndim == (2 if name == "matrix" else 4)
    assert torch.equal(theirs.A_dagger(y), op.H_pinv(op.H(x)))
    assert to_deepinv(op[:1]).adjointness_test(x[:1]).abs() < 1e-4 * x.norm() * y.norm()
    assert_near(theirs.A(torch.cat((x, x)))[2:], y, 1e-6)
    with pytest.raises(ValueError, match="3 images for 2 operators"):
        theirs.A(torch.zeros(3, *SHAPE))
    # Their proximal step, by conjugate gradients: (HᵀH + 1/γ)⁻¹(Hᵀy + z/γ).
    z, gamma = gaussian(2, *SHAPE, seed=1, dtype=torch.float32), 0.5
    theirs.set_ls_solver("CG", max_iter=200, tol=1e-7)
    found = theirs.prox_l2(z, y, gamma)
    residual = op.H_adjoint(op.H(found)) + found / gamma - op.H_adjoint(op.H(x)) - z / gamma
    assert residual.norm() < 1e-4 * z.norm()


def test_there_and_back(deepinv: Any) -> None:
    op = operators()["convolution"][:1]
    again = FromPhysics(to_deepinv(op), SHAPE, floor=0.0)
    x, y = gaussian(1, *SHAPE, dtype=torch.float32), gaussian(1, 192, dtype=torch.float32)
    assert torch.equal(again.H(x), op.H(x))
    assert_near(again.H_pinv(y, 0.1), op.H_pinv(y, 0.1), 1e-4)
    moved = to_deepinv(op).to(torch.float64)
    assert moved.A(x).dtype == op.H(x).dtype  # devices are followed, types are the operator's


def test_without_deepinv_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepinv", None)
    monkeypatch.setitem(sys.modules, "deepinv.physics", None)
    ours._physics_class.cache_clear()
    with pytest.raises(ImportError, match="to_deepinv needs the package deepinv"):
        to_deepinv(operators()["mask"])
    ours._physics_class.cache_clear()
