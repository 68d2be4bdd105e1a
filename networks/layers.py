"""The parts of HDiT (Crowson et al., 2024): norms, embeddings, token merge and split, feed-forward.

Tokens are channels-last, `[B, h, w, d]`. Parameter names are those of k-diffusion's
ImageTransformerDenoiserModelV2, so that weights interchange.
"""

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def zero_init(layer: nn.Linear) -> nn.Linear:
    """Start a projection at zero, so that its branch begins as the identity."""
    nn.init.zeros_(layer.weight)
    return layer


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x · scale / rms(x) over channels."""
    return (F.rms_norm(x, x.shape[-1:], eps=1e-6) * scale).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class AdaRMSNorm(nn.Module):
    """RMS norm whose scale 1 + W·cond follows the conditioning vector `[B, cond]`."""

    def __init__(self, width: int, cond_width: int):
        super().__init__()
        self.linear = zero_init(nn.Linear(cond_width, width, bias=False))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return rms_norm(x, 1 + self.linear(cond)[:, None, None])


class WithoutInitialisation(TorchFunctionMode):
    """Context in which layers draw no initial values, because a file overwrites them.

    The device "meta" does it too, but imports PyTorch's compiler, which takes two seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):  # of tensors, of nn.init
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class FourierFeatures(nn.Module):
    """Random Fourier features [cos, sin](2π·W·x) of a vector `[B, n]`."""

    weight: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("weight", torch.empty(outputs // 2, inputs).normal_())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            angle = 2 * math.pi * x.float() @ self.weight.float().T
            return torch.cat((angle.cos(), angle.sin()), -1).to(self.weight.dtype)


class GEGLU(nn.Linear):
    """Linear to twice the width; the first half times the exact GELU of the second."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, 2 * outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = super().forward(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Residual block: a norm, GEGLU, dropout and a projection."""

    def __init__(self, norm: nn.Module, width: int, d_ff: int, dropout: nn.Module | None = None):
        super().__init__()
        self.norm = norm
        self.up_proj = GEGLU(width, d_ff)
        self.dropout = dropout or nn.Identity()
        self.down_proj = zero_init(nn.Linear(d_ff, width, bias=False))

    def forward(self, x: Tensor, *cond: Tensor) -> Tensor:
        """cond: what the norm takes besides x."""
        return x + self.down_proj(self.dropout(self.up_proj(self.norm(x, *cond))))


def mapping_network(depth: int, width: int, d_ff: int) -> nn.Module:
    """From the summed embeddings of noise level, augmentation and class to the conditioning."""
    blocks = nn.Sequential(*(FeedForward(RMSNorm(width), width, d_ff) for _ in range(depth)))
    parts = {"in_norm": RMSNorm(width), "blocks": blocks, "out_norm": RMSNorm(width)}
    return nn.Sequential(OrderedDict(parts))


class TokenMerge(nn.Module):
    """Patches of p×p tokens become one wider token."""

    def __init__(self, inputs: int, outputs: int, patch: int):
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(inputs * patch * patch, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch
        return self.proj(rearrange(x, "b (h p) (w q) d -> b h w (p q d)", p=p, q=p))


class TokenSplit(nn.Module):
    """Inverse of `TokenMerge`, blended with the skip by a learned factor when it has one."""

    def __init__(self, inputs: int, outputs: int, patch: int, skip: bool = True):
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(inputs, outputs * patch * patch, bias=False)
        if skip:
            self.fac = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        p = self.patch
        x = rearrange(self.proj(x), "b h w (p q d) -> b (h p) (w q) d", p=p, q=p)
        return x if skip is None else torch.lerp(skip.to(x), x, self.fac.to(x))


def axial_positions(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Centres (row, column) of an h×w grid of tokens in [-1, 1], `[h, w, 2]`.

    The shorter side of a non-square grid is scaled so that tokens stay square.
    """
    longer = max(h, w)
    rows, columns = (
        ((2 * torch.arange(n, device=device) + 1) / n - 1) * (n / longer) for n in (h, w)
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)


class AxialRoPE(nn.Module):
    """Rotary embedding of row and column on half of the channels of each head.

    Frequencies run from π to 10π in logarithmic steps, interleaved over the heads.
    """

    freqs: Tensor

    def __init__(self, d_head: int, n_heads: int):
        super().__init__()
        count = d_head // 8
        log_freqs = torch.linspace(math.log(math.pi), math.log(10 * math.pi), n_heads * count + 1)
        self.register_buffer("freqs", log_freqs[:-1].exp().view(count, n_heads).T.contiguous())

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin `[h, w, n_heads, d_head / 4]` of the angles at positions `[h, w, 2]`."""
        angle = (positions[..., None, :, None] * self.freqs[:, None]).flatten(-2)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (c, c + d/4) of x `[B, h, w, n_heads, d]`, c < d/4."""
    n = cos.shape[-1]
    a, b, rest = x.split((n, n, x.shape[-1] - 2 * n), -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), -1)
