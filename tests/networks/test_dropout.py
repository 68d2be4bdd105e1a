"""Dropout: what an image's mask depends on, and its laws."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from networks.dropout import Dropout, seed_dropout


def kept(seeds: list[int], layers: int = 1, count: int = 40_000, p: float = 0.3) -> Tensor:
    """What each layer leaves of so many ones, `[layers, B, count]`."""
    network = nn.ModuleList(Dropout(p) for _ in range(layers)).train()
    seed_dropout(network, seeds)
    return torch.stack([layer(torch.ones(len(seeds), count)) for layer in network])


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_it_drops_its_share_and_keeps_the_mean(p: float) -> None:
    found = kept([1, 2, 2**40], layers=2, p=p)
    assert found.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-6)
    share = found.eq(0).double().mean().item()
    assert abs(share - p) < 4 * (p * (1 - p) / found.numel()) ** 0.5


def test_images_layers_and_neighbours_are_independent() -> None:
    """Correlations of 40,000 values, within five standard deviations."""
    dropped = (kept([1, 2, 2**40], layers=2) == 0).double().flatten(0, 1)
    centred = (dropped - 0.3) / 0.21**0.5
    for a, b in itertools.combinations(centred, 2):
        assert (a * b).mean().abs() < 0.025
    for shift in (1, 2, 3, 4, 8, 64):
        assert (centred[:, shift:] * centred[:, :-shift]).mean(-1).abs().max() < 0.025


def test_a_mask_follows_from_the_image_and_the_layer_alone() -> None:
    both, one = kept([7, 2**40], layers=2), kept([2**40], layers=2)
    assert torch.equal(both[:, 1:], one)
    assert not torch.equal(both[:, 0], both[:, 1])
    assert not torch.equal(both[0], both[1])


def test_it_is_idle_in_evaluation_and_plain_without_seeds() -> None:
    layer, x = Dropout(0.5), torch.ones(2, 300)
    torch.manual_seed(1)
    plain = layer(x)
    torch.manual_seed(1)
    assert torch.equal(plain, nn.Dropout(0.5)(x))
    layer.eval()
    seed_dropout(layer, [1, 2])
    assert torch.equal(layer(x), x)


def test_a_compiled_layer_drops_the_same() -> None:
    layer, x = Dropout(0.5).train(), torch.ones(2, 300)
    seed_dropout(layer, [3, 2**40])
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))
