"""Dropout whose masks follow from the seeds of the images, not from a generator with a state.

So a training step drops the same activations in whatever processes and parts a batch is shared out
to, and after a resume. Numbers of 16 bits, four of each word of a SplitMix64 generator (Steele et
al., "Fast splittable pseudorandom number generators", 2014), decide: p is a multiple of 2^-16, and
kept activations are scaled by 1/(1 − p) of that p.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from degradation.randomness import philox

_VALUES = 2**16
_STREAM = 0x64726F70  # a counter word of no other stream
# SplitMix64: its increment, and the shifts and factors that mix; as signed numbers of 64 bits.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MIXING = (30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1)


class Dropout(nn.Dropout):
    """Drops activations of `[B, ...]` with probability p while it trains.

    Inside `seeded` a value's fate is a function of its image's seed, the layer and its position;
    outside, torch's generator decides, as it does in `nn.Dropout`.
    """

    def __init__(self, p: float = 0.0):
        super().__init__(p)
        self.keys: Tensor | None = None
        """Where the generator of this layer starts for each image, `[B]`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.keys is None or not self.training or not 0 < self.p < 1:
            return super().forward(x)
        dropped = min(round(self.p * _VALUES), _VALUES - 1)
        compiled = x.is_cuda or torch.compiler.is_compiling()
        kept = _kept(self.keys, math.prod(x.shape[1:]), dropped, compiled).view_as(x)
        # Faster than `where`; of values that are not finite even a dropped one shows, as NaN.
        return (x * kept).mul_(_VALUES / (_VALUES - dropped))


@contextmanager
def seeded(network: nn.Module, seeds: Tensor) -> Iterator[None]:
    """Let the dropout layers of a network follow the seeds `[B]` (int64) of a batch."""
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    for layer, keys in zip(layers, _keys(seeds, len(layers)), strict=True):
        layer.keys = keys
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None


class Repeated:
    """A context in which a module drops what it dropped when this was made.

    For computing a pass once more, in every backward pass that asks for it.
    """

    def __init__(self, module: nn.Module):
        self.layers = [(x, x.keys) for x in module.modules() if isinstance(x, Dropout)]
        self.others: list[Tensor | None] = []

    def __enter__(self) -> None:
        self.others = [layer.keys for layer, _ in self.layers]
        for layer, keys in self.layers:
            layer.keys = keys

    def __exit__(self, *error: object) -> None:
        for (layer, _), keys in zip(self.layers, self.others, strict=True):
            layer.keys = keys


# One operation to a compiler, which would otherwise draw the numbers again wherever they are used.
@torch.library.custom_op("invfusion::kept", mutates_args=())
def _kept(keys: Tensor, count: int, dropped: int, compiled: bool) -> Tensor:
    """Which values stay, bool `[B, count]`: of 2^16 numbers all but the `dropped` smallest.

    compiled: whether the numbers, the same ones, come from a compiled function.
    """
    draw = _compiled() if compiled else _words
    # Made outside what is compiled: PyTorch's compiler makes large products of indices wrong.
    steps = torch.arange(-(-count // 4), device=keys.device) * _INCREMENT
    numbers = draw(keys, steps).view(torch.int16)
    return numbers[:, :count] >= dropped - _VALUES // 2


@_kept.register_fake
def _(keys: Tensor, count: int, dropped: int, compiled: bool) -> Tensor:
    return keys.new_empty(len(keys), count, dtype=torch.bool)


def _keys(seeds: Tensor, layers: int) -> Tensor:
    """Where the generator starts, for each layer and image `[layers, B]`."""
    low, high = seeds & 0xFFFFFFFF, (seeds >> 32) & 0xFFFFFFFF
    layer = torch.arange(layers, device=seeds.device)[:, None].expand(-1, len(seeds))
    zero = torch.zeros_like(layer)
    words = philox([zero, layer, zero, zero + _STREAM], (low, high))
    return words[0] | (words[1] << 32)


def _words(keys: Tensor, steps: Tensor) -> Tensor:
    """Random words of 64 bits `[B, count]` at so many steps `[count]` of the generators."""
    z = steps + keys[:, None]
    for shift, factor in _MIXING:
        z ^= (z >> shift) & (2 ** (64 - shift) - 1)  # a shift that brings in zeros
        z *= factor
    return z


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor], Tensor]:
    # A dozen operations in as many kernels would move the numbers as often.
    return torch.compile(_words, dynamic=True)
