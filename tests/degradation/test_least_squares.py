"""Conjugate gradients on singular values far apart: the documented solution, or a warning."""

import pytest
import torch
from helpers import assert_near, gaussian
from plain_physics import Rows
from torch import Tensor

from degradation import FromPhysics

SHAPE = (3, 8, 8)
N = 192


class Scaled:
    """y = g·x, every pixel by its own g."""

    def __init__(self, g: Tensor):
        self.g = g

    def A(self, x: Tensor) -> Tensor:
        return self.g * x

    A_adjoint = A


@pytest.mark.parametrize("g", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("mixed", [False, True])
def test_small_singular_values_are_solved_for_without_a_floor(g: float, mixed: bool) -> None:
    values = torch.tensor([1.0, g]).repeat(N // 2)
    x = torch.ones(1, *SHAPE)
    if mixed:  # rotated, in float64: directions are no pixels
        turn, _ = torch.linalg.qr(gaussian(N, N))
        rows = Rows(values.double()[:, None] * turn, SHAPE)
        op, x = FromPhysics(rows, SHAPE, floor=0).to(torch.float64), x.double()
    else:
        op = FromPhysics(Scaled(values.view(SHAPE)), SHAPE, floor=0)
    assert_near(op.H_pinv(op.H(x)), x, 1e-2)


def test_the_floor_shrinks_as_documented() -> None:
    values = torch.tensor([1.0, 1e-3]).repeat(N // 2).view(SHAPE)
    op = FromPhysics(Scaled(values), SHAPE)
    x = op.H_pinv(op.H(torch.ones(1, *SHAPE)))
    assert_near(x[0, ..., 1::2], torch.full((3, 8, 4), 0.5), 1e-2)  # s²/(s² + σ²) where s = σ


def test_a_warning_says_how_far_it_came() -> None:
    values = torch.logspace(0, -4, N).view(SHAPE)
    op = FromPhysics(Scaled(values), SHAPE, floor=0, max_iter=20)
    with pytest.warns(UserWarning, match=r"after 20 steps before 1 of 1 .* worst is at \d"):
        op.H_pinv(op.H(torch.ones(1, *SHAPE)))
