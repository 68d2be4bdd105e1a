"""Dropout whose masks follow from the seeds of the images, not from one generator's state.

So a training step drops the same activations for any number of processes and parts of the batch
and after a resume.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from degradation import derive_seed


class Dropout(nn.Dropout):
    """Drops activations of `[B, ...]` with probability p while it trains.

    After `seed_dropout` a value's fate follows from its image's seed, the layer and its position.
    Without it torch's generator decides, as it does in `nn.Dropout`.
    """

    keys: Tensor | None = None  # a generator's seed for each image, `[B]` int64 on the CPU

    def forward(self, x: Tensor) -> Tensor:
        if self.keys is None or not self.training or self.p == 0:
            return super().forward(x)
        return x * _kept(x, self.keys, self.p) / (1 - self.p)


def seed_dropout(network: nn.Module, seeds: Sequence[int]) -> None:
    """Let the dropout layers of a network follow the seeds of a batch's images.

    They do until they get others, so in a backward pass that computes activations again too.
    """
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.keys = torch.tensor([derive_seed(seed, "dropout", number) for seed in seeds])


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
