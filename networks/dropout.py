"""Dropout whose masks follow from the seeds of the images, not from one generator's state.

So a training step drops the same activations for any number of processes and parts of the batch
and after a resume.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from degradation import derive_seed


class Dropout(nn.Dropout):
    """Drops activations of `[B, ...]` with probability p while it trains.

    Inside `seeded` a value's fate follows from its image's seed, the layer and its position.
    Outside, torch's generator decides, as it does in `nn.Dropout`.
    """

    keys: Tensor | None = None
    """A generator's seed for each image, `[B]` int64 on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if self.keys is None or not self.training or self.p == 0:
            return super().forward(x)
        return x * _kept(x, self.keys, self.p) / (1 - self.p)


@contextmanager
def seeded(network: nn.Module, seeds: Sequence[int]) -> Iterator[None]:
    """Let the dropout layers of a network follow the seeds of a batch's images."""
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.keys = torch.tensor([derive_seed(seed, "dropout", number) for seed in seeds])
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


# One operation to a compiler, which knows no generators of one's own.
@torch.library.custom_op("invfusion::kept", mutates_args=())
def _kept(x: Tensor, keys: Tensor, p: float) -> Tensor:
    """Which values of x `[B, ...]` stay, bool: each with probability 1 − p."""
    kept = torch.empty_like(x, dtype=torch.bool, memory_format=torch.contiguous_format)
    generator = torch.Generator(x.device)
    for row, key in zip(kept, keys.tolist(), strict=True):
        row.bernoulli_(1 - p, generator=generator.manual_seed(key))
    return kept


@_kept.register_fake
def _(x: Tensor, keys: Tensor, p: float) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool, memory_format=torch.contiguous_format)
