"""Permutations that follow from a seed."""

import torch
from torch import Tensor

from degradation import derive_seed


def permutation(size: int, *parts: int | str) -> Tensor:
    """The numbers below `size`, int64, in an order that follows from `parts`."""
    generator = torch.Generator().manual_seed(derive_seed(*parts))
    return torch.randperm(size, generator=generator)
