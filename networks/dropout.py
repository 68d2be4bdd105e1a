"""Dropout whose masks follow from the seeds of the images, not from a generator with a state.

So a training step drops the same activations in whatever processes and parts a batch is shared out
to, and after a resume. Numbers of 16 bits, eight of each Philox counter, decide: p is a multiple of
2^-16, and kept activations are scaled by 1/(1 − p) of that p.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from degradation.randomness import philox

_BITS = 16
_STREAM = 0x64726F70  # a counter word of no other stream


class Dropout(nn.Dropout):
    """Drops activations of `[B, ...]` with probability p while it trains.

    Inside `seeded` a value's fate is a function of its image's seed, the layer and its position;
    outside, torch's generator decides, as it does in `nn.Dropout`.
    """

    def __init__(self, p: float = 0.0):
        super().__init__(p)
        self.seeds: Tensor | None = None
        self.layer = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.seeds is None or not self.training or not self.p:
            return super().forward(x)
        return x * (_mask(self.seeds, self.layer, x[0].numel(), self.p).view_as(x).to(x.dtype))


@contextmanager
def seeded(network: nn.Module, seeds: Tensor) -> Iterator[None]:
    """Let the dropout layers of a network follow the seeds `[B]` (int64) of a batch."""
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.seeds, layer.layer = seeds, number
    try:
        yield
    finally:
        for layer in layers:
            layer.seeds = None


def _mask(seeds: Tensor, layer: int, count: int, p: float) -> Tensor:
    """Factors `[B, count]` of the values: 0 or 1/(1 − p)."""
    dropped = round(p * 2**_BITS)
    return _kept(seeds, layer, count, dropped) * (2**_BITS / max(2**_BITS - dropped, 1))


# One operation to a compiler, which would otherwise draw the numbers again wherever they are used.
@torch.library.custom_op("invfusion::kept", mutates_args=())
def _kept(seeds: Tensor, layer: int, count: int, dropped: int) -> Tensor:
    """Which values stay, bool `[B, count]`."""
    draw = _compiled() if seeds.is_cuda else _bits
    return draw(seeds, layer, -(-count // 8))[:, :count] >= dropped


@_kept.register_fake
def _(seeds: Tensor, layer: int, count: int, dropped: int) -> Tensor:
    return seeds.new_empty(len(seeds), count, dtype=torch.bool)


def _bits(seeds: Tensor, layer: int, counters: int) -> Tensor:
    """Numbers of 16 bits `[B, 8·counters]`."""
    position = torch.arange(counters, device=seeds.device)
    zero = torch.zeros_like(position)
    key = seeds[:, None] & 0xFFFFFFFF, (seeds[:, None] >> 32) & 0xFFFFFFFF
    words = torch.stack(philox([position, zero + layer, zero, zero + _STREAM], key), -1)
    return torch.stack((words & 0xFFFF, words >> 16), -1).flatten(1)


@functools.cache
def _compiled() -> Callable[[Tensor, int, int], Tensor]:
    # A hundred operations in as many kernels would cost a GPU as much as the network does.
    return torch.compile(_bits, dynamic=True)
