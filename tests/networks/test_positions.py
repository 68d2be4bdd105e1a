"""Rotary positions: square on any grid, and logits of offsets alone."""

import math

import torch
from small_networks import close
from torch import Tensor

from networks.layers import AxialRoPE, axial_positions, rotate


def test_positions_are_square_on_any_grid() -> None:
    positions = axial_positions(2, 4)
    close(positions[:, 0, 0], torch.tensor([-0.25, 0.25]))
    close(positions[0, :, 1], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    close(axial_positions(4, 2), positions.transpose(0, 1).flip(-1))
    assert (positions[..., 0] == positions[:, :1, 0]).all()


def test_rotary_logits_depend_on_the_offset_alone() -> None:
    rope = AxialRoPE(d_head=32, n_heads=3)
    q, k = torch.randn(2, 1, 1, 1, 3, 32).double()

    def logit(at: list[float], other: list[float]) -> Tensor:
        positions = (torch.tensor(p, dtype=torch.float64)[None, None] for p in (at, other))
        cos_sin = [rope.double()(position) for position in positions]
        return (rotate(q, *cos_sin[0]) * rotate(k, *cos_sin[1])).sum(-1)

    here = logit([0.1, -0.4], [0.3, 0.2])
    torch.testing.assert_close(here, logit([-0.5, 0.1], [-0.3, 0.7]))
    assert (here - logit([0.1, -0.4], [0.3, 0.3])).abs().min() > 1e-4


def test_rotary_frequencies() -> None:
    """From π to 10π in logarithmic steps without the last, dealt out to the heads in turn."""
    freqs = AxialRoPE(d_head=16, n_heads=3).freqs
    expected = [[math.pi * 10 ** ((j * 3 + head) / 6) for j in range(2)] for head in range(3)]
    close(freqs, torch.tensor(expected))
