"""Operators known by A and Aᵀ alone: conjugate gradients against dense matrices, and their use."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_near, gaussian, matrix, regularised_inverse
from plain_physics import SHAPE, KSpace, Padded, Rows
from torch import Tensor

from degradation import Draws, FromPhysics, GaussianNoise, PhysicsFamily

LEVELS = torch.tensor([0.05, 0.3], dtype=torch.float64)


def rank_deficient() -> Tensor:
    values = gaussian(10, 72)
    values[4:] = gaussian(6, 4, seed=1) @ values[:4]
    return values


CASES: dict[str, Callable[[], Any]] = {
    "picture": lambda: Padded(),
    "strided": lambda: Padded(stride=2),
    "matrix": lambda: Rows(gaussian(20, 72)),
    "dependent rows": lambda: Rows(rank_deficient()),
    "more rows than pixels": lambda: Rows(gaussian(90, 72)),
    "complex": lambda: KSpace(),
    "one each": lambda: [Padded(0), Padded(1)],
}
every_physics = pytest.mark.parametrize("case", list(CASES))


def build(case: str, dtype: torch.dtype = torch.float64, **options: Any) -> FromPhysics:
    """A batch of two, with a tolerance that leaves the rounding of the arithmetic."""
    tol = 1e-12 if dtype == torch.float64 else 1e-6
    return FromPhysics(CASES[case](), SHAPE, batch=2, **{"tol": tol} | options).to(dtype)


def dense(op: Any) -> Tensor:
    return matrix(op.H, len(op), op.image_shape, op.norm.dtype)


def dense_pinv(op: Any, noise_level: float | Tensor = 0.0) -> Tensor:
    M = op.rows.shape[1]
    return matrix(lambda y: op.H_pinv(y, noise_level), len(op), (M,), op.norm.dtype)


# ---- the maps


@every_physics
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_are_those_of_the_physics(case: str, dtype: torch.dtype) -> None:
    op = build(case, dtype)
    x = gaussian(2, *SHAPE, dtype=dtype)
    members = [m for m in op.physics for _ in range(2 // len(op.physics))]
    plain = torch.cat([m.A(x[[i]]) for i, m in enumerate(members)])
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    assert_near(op.H(x), plain.flatten(1), 1e-6 if dtype == torch.float32 else 1e-14)
    assert op.H(x).dtype == dtype
    back = matrix(op.H_adjoint, 2, (op.rows.shape[1],), dtype)
    assert_near(back, dense(op).mT, 1e-6 if dtype == torch.float32 else 1e-13)
    norm = torch.linalg.svdvals(dense(op))[:, 0]
    assert ((op.norm <= norm * (1 + 1e-5)) & (op.norm > 0.93 * norm)).all()


@every_physics
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_regularised_pseudo_inverse(case: str, dtype: torch.dtype, tol: float) -> None:
    op = build(case, dtype)
    H = dense(build(case))
    assert_near(dense_pinv(op, LEVELS), regularised_inverse(H, LEVELS), tol)
    floor = 1e-3 * op.norm
    assert_near(dense_pinv(op), regularised_inverse(H, floor), tol)
    mixed = torch.tensor([0.0, 0.3], dtype=torch.float64)
    expected = regularised_inverse(H, torch.maximum(mixed, floor.double()))
    assert_near(dense_pinv(op, mixed), expected, tol)


@every_physics
def test_without_a_floor_it_is_the_pseudo_inverse(case: str) -> None:
    # y in all directions, also those outside the range of dependent rows.
    op = build(case, floor=0.0)
    assert_near(dense_pinv(op), torch.linalg.pinv(dense(op), rtol=1e-8), 1e-8)
    y = op.H(gaussian(2, *SHAPE))
    assert_near(op.H(op.H_pinv(y)), y, 1e-8)
    x = op.project(torch.zeros(2, *SHAPE, dtype=torch.float64), y)
    assert_near(op.H(x), y, 1e-8)


@every_physics
def test_stacks_and_the_batch(case: str) -> None:
    op = build(case, torch.float32)
    x = gaussian(2, 3, *SHAPE, dtype=torch.float32)
    y = op.H(x)
    assert y.shape == (2, 3, op.rows.shape[1])
    pinv, back = op.H_pinv(y, LEVELS), op.H_adjoint(y)
    for k in range(3):
        assert_near(y[:, k], op.H(x[:, k]), 1e-6)
        assert_near(back[:, k], op.H_adjoint(y[:, k]), 1e-6)
        assert_near(pinv[:, k], op.H_pinv(y[:, k], LEVELS), 1e-5)
    many, one = op.expand(2), op[[1]]
    assert len(many) == 4 and len(one) == 1
    assert_near(many.H_pinv(y[:, 0].repeat(2, 1), 0.1)[2:], op.H_pinv(y[:, 0], 0.1), 1e-5)
    assert_near(one.H_pinv(y[1:, 0], 0.1), op.H_pinv(y[:, 0], 0.1)[1:], 1e-5)


@every_physics
def test_gradients_are_those_of_the_maps(case: str) -> None:
    op = build(case, tol=1e-13)
    x = gaussian(2, *SHAPE).requires_grad_()
    y = gaussian(2, op.rows.shape[1], seed=1).requires_grad_()
    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(op.H, (x,), **fast)
    assert torch.autograd.gradcheck(op.H_adjoint, (y,), **fast)
    assert torch.autograd.gradcheck(lambda y: op.H_pinv(y, LEVELS), (y,), **fast)
    assert torch.autograd.gradgradcheck(lambda y: op.H_pinv(y, LEVELS).square(), (y,), **fast)


@pytest.mark.parametrize("case", ["picture", "dependent rows", "complex", "one each"])
def test_the_gradient_by_the_noise_level(case: str) -> None:
    op = build(case, tol=1e-13)
    y = gaussian(2, 3, op.rows.shape[1], seed=1).requires_grad_()
    level = LEVELS.clone().requires_grad_()
    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(op.H_pinv, (y, level), **fast)
    assert torch.autograd.gradcheck(lambda t: op.H_pinv(y[:, 0].detach(), t), (level,), **fast)
    assert torch.autograd.gradgradcheck(lambda y, t: op.H_pinv(y, t), (y, level), **fast)
    shared = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: op.H_pinv(y.detach(), t), (shared,), **fast)
    below = torch.zeros((), dtype=torch.float64, requires_grad=True)  # the floor counts
    for floor in (1e-3, 0.0):
        op.floor = floor
        (slope,) = torch.autograd.grad(
            op.H_pinv(op.H(op.H_adjoint(y.detach())), below).sum(), below
        )
        assert slope == 0


@every_physics
def test_nan_comes_out_and_stays_with_its_image(case: str) -> None:
    op = build(case, torch.float32)
    y = op.H(gaussian(2, 3, *SHAPE, dtype=torch.float32))
    expected = op.H_pinv(y)
    y[0, 1, op.rows[0].byte().argmax()] = torch.nan
    x = op.H_pinv(y)
    assert x[0, 1].isnan().all()
    assert torch.equal(x[1], expected[1]) and torch.equal(x[0, ::2], expected[0, ::2])


def test_autocast_leaves_the_arithmetic_alone() -> None:
    op = build("picture", torch.float32)
    x = gaussian(2, *SHAPE, dtype=torch.float32)
    y = op.H(x)
    expected = op.H_pinv(y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(op.H(x), y) and torch.equal(op.H_pinv(y), expected)
        assert op.H(x.bfloat16()).dtype == torch.float32


def test_one_physics_of_a_list_for_each_image() -> None:
    op = build("one each")
    swapped = op[[1, 0]]
    x = gaussian(2, *SHAPE)
    assert_near(swapped.H(x), op.H(x.flip(0)).flip(0), 1e-12)
    assert (op.H(x[:1].expand(2, -1, -1, -1)).diff(dim=0).abs() > 0).any()


def test_nothing_waits_for_the_device_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    op = build("one each", torch.float32)
    y = op.H(gaussian(2, *SHAPE, dtype=torch.float32))
    counts = {"steps": 0, "looks": 0}
    spread, look = op._spread, Tensor.__bool__

    def counted(self: Tensor) -> bool:
        counts["looks"] += 1
        return look(self)

    def stepping(y: Tensor) -> Tensor:
        counts["steps"] += 1
        return spread(y)

    monkeypatch.setattr(op, "_spread", stepping)
    monkeypatch.setattr(Tensor, "__bool__", counted)
    monkeypatch.setattr(Tensor, "tolist", lambda _: pytest.fail("waits"))
    op.H_pinv(y)
    assert counts["steps"] > 12 and counts["looks"] <= counts["steps"] / 4 + 1


def test_a_cast_leaves_the_physics_of_the_user_as_it_was() -> None:
    physics = KSpace()
    op = FromPhysics(physics, SHAPE).to(torch.float64)
    assert physics.mask.dtype == torch.float32
    assert op.H(gaussian(1, *SHAPE)).dtype == torch.float64


def test_rows_that_are_zero_do_not_exist() -> None:
    op = build("complex")
    exists = dense(op).abs().amax(-1) > 1e-12
    seen = KSpace().mask.bool()[None, ..., None].expand(3, -1, -1, 2)
    assert torch.equal(op.rows, exists | (seen.flatten() & op.rows))
    assert not op.rows[:, ~seen.flatten()].any()
    problem = GaussianNoise(0.1).measure(op, gaussian(2, *SHAPE), Draws([1, 2]))
    assert not problem.y[~op.rows].any() and problem.y[op.rows].all()


def test_rows_that_are_zero_but_for_rounding_do_not_exist() -> None:
    class Spectrum:
        def A(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x, norm="ortho")

        def A_adjoint(self, y: Tensor) -> Tensor:
            return torch.fft.ifft2(y, norm="ortho")

    # The imaginary parts where −k = k: 4 of them in each channel of even sides.
    for side in (6, 20, 48):
        assert int((~FromPhysics(Spectrum(), (3, side, side)).rows).sum()) == 12
    # Rows far smaller than others are rows.
    values = gaussian(20, 72)
    values[:3] *= 1e-4
    assert FromPhysics(Rows(values), SHAPE).rows.all()


def test_measurements_as_pictures() -> None:
    y = build("strided").H(gaussian(2, *SHAPE))
    picture = build("strided").measurement_image(y)
    assert picture is not None and picture.shape == (2, 3, 3, 2)
    assert build("complex").measurement_image(torch.zeros(2, 144)) is None
    assert build("matrix").measurement_image(torch.zeros(2, 20)) is None


def test_too_few_steps_are_told() -> None:
    op = build("picture", torch.float32, max_iter=2)
    with pytest.warns(UserWarning, match="stopped after 2 steps before 2 of 2 images"):
        op.H_pinv(op.H(gaussian(2, *SHAPE, dtype=torch.float32)))


# ---- refusals


class Wrong(Rows):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return super().A_adjoint(y) * 1.1


class Affine(Rows):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x) + 3


class Several(Rows):
    def A(self, x: Tensor) -> Any:
        return [super().A(x)]


@pytest.mark.parametrize(
    ("physics", "options", "sentence"),
    [
        (Wrong(gaussian(20, 72)), {}, "Wrong is not the adjoint of its A"),
        (Affine(gaussian(20, 72)), {}, "Affine is not the adjoint of its A"),
        (Several(gaussian(20, 72)), {}, "to one tensor of measurements .* not to list"),
        ([], {}, "0 physics for 1 images"),
        ([Padded(), Padded()], {"batch": 3}, "2 physics for 3 images"),
        ([Padded(), Padded(stride=2)], {}, "must have one form"),
        (object(), {}, "a physics has the methods A and A_adjoint, object has not"),
        ([Padded(), 3], {}, "a physics has the methods A and A_adjoint, int has not"),
    ],
)
def test_physics_that_are_refused(physics: Any, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FromPhysics(physics, SHAPE, **options)


LARGE = (3, 128, 128)


class Pixels:
    """Every pixel, with an adjoint that may be wrong."""

    def __init__(self, wrong: Callable[[Tensor], Tensor] = lambda y: y, scale: float = 1.0):
        self.wrong, self.scale = wrong, scale

    def A(self, x: Tensor) -> Tensor:
        return self.scale * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.scale * self.wrong(y)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda y: 1.1 * y,
    "half": lambda y: 0.5 * y,
    "turned": lambda y: y.flip(-1),
    "nothing": lambda y: 0 * y,
    "shifted": lambda y: y.roll(1, -1),
    "skew": lambda y: y + 0.2 * (y.roll(1, -1) - y.roll(-1, -1)),
    "NaN": lambda y: torch.nan * y,
}


@pytest.mark.parametrize("shape", [SHAPE, LARGE])
@pytest.mark.parametrize("wrong", list(WRONG))
def test_wrong_adjoints_are_refused_at_any_size(wrong: str, shape: tuple[int, int, int]) -> None:
    FromPhysics(Pixels(), shape)
    with pytest.raises(ValueError, match="Pixels is not the adjoint"):
        FromPhysics(Pixels(WRONG[wrong]), shape)
    # A member of a list is not hidden by a larger one.
    with pytest.raises(ValueError, match=r"Pixels \(physics 1 of the list\) is not the adjoint"):
        FromPhysics([Pixels(scale=1e3), Pixels(WRONG[wrong], 1e-3)], shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modules_of_16_bits_are_refused(dtype: torch.dtype) -> None:
    for physics in (Padded().to(dtype), [Padded(), Padded().to(dtype)]):
        with pytest.raises(ValueError, match=r"Padded holds torch.b?float16 numbers.*\.float\(\)"):
            FromPhysics(physics, SHAPE)


def test_a_family_can_be_a_key() -> None:
    family = PhysicsFamily([Padded()], {"floor": 0.1})
    assert {family: 1}[family] == 1 and family != PhysicsFamily([Padded()])
