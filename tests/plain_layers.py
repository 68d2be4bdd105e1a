"""Norm and gate by their formulas, differentiated by PyTorch: the oracle of networks/lean.py."""

import torch.nn.functional as F
from torch import Tensor


def plain_norm(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """x · scale / rms(x) over the last dimension."""
    return x * scale / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def plain_gate(x: Tensor) -> Tensor:
    """a · GELU(b) of x = [a, b] along the last dimension."""
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)
