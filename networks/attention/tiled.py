"""Attention by PyTorch's fused softmax attention: whole maps, and tiles of queries for windows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from networks.attention.cutting import cut

_SINGLE_TILE = 64  # up to this many tokens one masked attention over the whole map is cheapest
_NARROW, _ROWS = 16, 4  # on maps of so many columns at most a tile has all of them and few rows
_TILE = 8  # side of a tile of queries on larger maps
_COPIED = 2**23  # values of keys that are copied at a time where no gradients are wanted


class GlobalAttention:
    """Every query sees every key."""

    def __call__(self, q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        h, w = q.shape[1:3]
        k, v = (torch.cat([pair[i].flatten(1, 2) for pair in streams], 1) for i in (0, 1))
        dtype = _precision(q, v)
        # [B, n_heads, tokens, d]
        q, k, v = (x.to(dtype).transpose(1, 2) for x in (q.flatten(1, 2), k, v))
        out = _softmax(q, k, v).to(streams[0][1].dtype)
        return out.transpose(1, 2).unflatten(1, (h, w))


class TiledNeighbourhood:
    """Tiles of queries, each with the keys that any of its windows holds, and a mask."""

    def __init__(self, h: int, w: int, kernel: int, streams: int, device: torch.device):
        n, m = _tile(h, w)
        rows, columns = _axis(h, kernel, n), _axis(w, kernel, m)
        mask = rows.mask[:, None, :, None, :, None] & columns.mask[None, :, None, :, None, :]
        mask = mask.flatten(4, 5).flatten(2, 3).flatten(0, 1).repeat(1, 1, streams)
        self.mask = mask[None].to(device)  # [1, tiles, queries, keys]
        self.side = rows.mask.shape[1], columns.mask.shape[1]
        self.keys = [(r, c) for r in rows.keys for c in columns.keys]

    def __call__(self, q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._attend(q, streams)
        # Nothing is kept for a backward pass, so that parts of the batch need less memory.
        copied = self.mask.shape[1] * self.mask.shape[3] * q.shape[3:].numel()
        n = max(1, _COPIED // copied)
        if len(q) <= n:
            return self._attend(q, streams)
        parts = [slice(i, i + n) for i in range(0, len(q), n)]
        return torch.cat([self._attend(q[i], [(k[i], v[i]) for k, v in streams]) for i in parts])

    def _attend(self, q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        n, m = self.side
        h, w, n_heads = q.shape[1:4]
        dtype = _precision(q, streams[0][1])  # before the keys are copied several times over
        q = F.pad(q.to(dtype), (0, 0, 0, 0, 0, -w % m, 0, -h % n))
        # [B · n_heads, tiles, tokens, d]
        tiles = "(b n) (t u) (r c) d"
        q = rearrange(q, f"b (t r) (u c) n d -> {tiles}", r=n, c=m)
        k, v = (cut([pair[i].to(dtype) for pair in streams], self.keys) for i in (0, 1))
        out = _softmax(q, k, v, self.mask).to(streams[0][1].dtype)
        out = rearrange(out, f"{tiles} -> b (t r) (u c) n d", n=n_heads, u=-(-w // m), r=n)
        return out[:, :h, :w]


def _tile(h: int, w: int) -> tuple[int, int]:
    """Rows and columns of a tile: the fastest of several on a CPU; a GPU gets the same."""
    if h * w <= _SINGLE_TILE:
        return h, w
    return (_ROWS, w) if w <= _NARROW else (_TILE, _TILE)


def _precision(q: Tensor, v: Tensor) -> torch.dtype:
    """That of v, but on a CPU that of q where gradients are wanted.

    The backward pass of the CPU's kernel is nearly twice as fast in float32 as in bf16.
    """
    return q.dtype if q.device.type == "cpu" and torch.is_grad_enabled() else v.dtype


def _softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ)v on `[B, heads, tokens, d]`; mask True where a query sees a key."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def window_start(position: Tensor, n: int, kernel: int) -> Tensor:
    """First index of the window of `kernel` positions around a position on an axis of n."""
    return (position - kernel // 2).clamp(0, n - kernel)


class _Axis(NamedTuple):
    """Tiles of one axis: the keys of each, a range, and `[tiles, queries, keys]` who sees whom."""

    keys: list[slice]
    mask: Tensor


def _axis(n: int, kernel: int, tile: int) -> _Axis:
    kernel, tile = min(kernel, n), min(tile, n)
    length = min(tile + kernel - 1, n)
    # Queries beyond the last are cut off again; they see what the last one sees.
    queries = torch.arange(0, n, tile)[:, None] + torch.arange(tile)
    window = window_start(queries.clamp(max=n - 1), n, kernel)
    first = [min(max(i - kernel // 2, 0), n - length) for i in range(0, n, tile)]
    offset = (torch.tensor(first)[:, None] + torch.arange(length))[:, None] - window[:, :, None]
    keys = [slice(start, start + length) for start in first]
    return _Axis(keys, (offset >= 0) & (offset < kernel))
