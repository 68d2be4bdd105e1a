"""Operations that keep little for the backward pass, against their formulas."""

import itertools

import pytest
import torch
from helpers import gaussian
from torch import Tensor

from benchmarks.reference_path import plain_gate, plain_norm
from networks.dropout import Dropout, _kept, _keys, seeded
from networks.lean import gated_gelu, rms_normalise


def test_the_gate_and_its_gradient() -> None:
    x = gaussian(2, 5, 12, seed=1).requires_grad_()
    torch.testing.assert_close(gated_gelu(x), plain_gate(x))
    assert torch.autograd.gradcheck(gated_gelu, (x,))


@pytest.mark.parametrize("shape", [(2, 1, 1, 6), (6,)])
def test_the_norm_and_its_gradients(shape: tuple[int, ...]) -> None:
    x, scale = (gaussian(*s, seed=2).requires_grad_() for s in ((2, 3, 4, 6), shape))
    torch.testing.assert_close(rms_normalise(x, scale), plain_norm(x, scale))
    assert torch.autograd.gradcheck(rms_normalise, (x, scale))


def test_the_norm_of_bf16_has_statistics_in_float32() -> None:
    x = gaussian(2, 3, 4, 96, seed=3).bfloat16().requires_grad_()
    scale = gaussian(96, seed=4).float().requires_grad_()
    found = rms_normalise(x, scale)
    assert found.dtype == torch.bfloat16
    # No more than one rounding.
    torch.testing.assert_close(found.float(), plain_norm(x.float(), scale), rtol=2.0**-8, atol=0)
    found.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert scale.grad is not None and scale.grad.dtype == torch.float32


def kept(seeds: list[int], layers: int = 1, count: int = 40_000, p: float = 0.3) -> Tensor:
    """Which of so many ones each layer leaves, `[layers, B, count]`."""
    network = torch.nn.ModuleList(Dropout(p) for _ in range(layers)).train()
    with seeded(network, torch.tensor(seeds, dtype=torch.int64)):
        return torch.stack([layer(torch.ones(len(seeds), count)) for layer in network])


def test_dropout_keeps_its_share_and_the_mean() -> None:
    found = kept([1, 2, 2**40], layers=2)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.7], rel=1e-4)
    assert (found.mean(-1) - 1).abs().max() < 0.015  # four standard deviations


def test_dropout_of_images_and_layers_is_independent() -> None:
    """And of neighbours: correlations of 40,000 values, within five standard deviations."""
    dropped = (kept([1, 2, 2**40], layers=2) == 0).double().flatten(0, 1)
    centred = (dropped - 0.3) / 0.21**0.5
    for a, b in itertools.combinations(centred, 2):
        assert (a * b).mean().abs() < 0.025
    for shift in (1, 2, 3, 4, 8, 64):
        assert (centred[:, shift:] * centred[:, :-shift]).mean(-1).abs().max() < 0.025


def test_dropout_follows_the_image_alone() -> None:
    both, one = kept([7, 8], count=30), kept([8], count=30)
    assert torch.equal(both[:, 1:], one)
    assert not torch.equal(both[:, 0], both[:, 1])
    assert torch.equal(kept([8], count=20), one[:, :, :20])


def test_a_compiled_draw_drops_the_same() -> None:
    (keys,) = _keys(torch.tensor([3, 2**40]), 1)
    assert torch.equal(*(_kept(keys, 1001, 3277, compiled) for compiled in (False, True)))
