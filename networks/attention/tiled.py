"""Attention by PyTorch's fused softmax attention: whole maps, and tiles of queries for windows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.attention.windows import window_start

_SINGLE_TILE = 256  # up to this many tokens one masked attention over the whole map is cheapest
_TILE = 8  # side of a tile of queries on larger maps


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


class _Axis(NamedTuple):
    """Tiles of one axis: `[tiles, T]` query and `[tiles, L]` key indices, `[tiles, T, L]` mask."""

    queries: Tensor
    keys: Tensor
    mask: Tensor


class TiledNeighbourhood:
    """Tiles of queries, each with the keys that any of its windows holds, and a mask."""

    def __init__(self, h: int, w: int, kernel: int, streams: int, device: torch.device):
        tile = max(h, w) if h * w <= _SINGLE_TILE else _TILE
        rows, columns = _axis(h, kernel, tile), _axis(w, kernel, tile)
        mask = rows.mask[:, None, :, None, :, None] & columns.mask[None, :, None, :, None, :]
        mask = mask.flatten(4, 5).flatten(2, 3).flatten(0, 1).repeat(1, 1, streams)
        self.mask = mask.to(device)  # [tiles, queries, keys]
        self.queries = rows.queries.to(device), columns.queries.to(device)
        self.keys = rows.keys.to(device), columns.keys.to(device)

    def __call__(self, q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        batch, h, w, n_heads, _ = q.shape
        tiles, side = zip(*(axis.shape for axis in self.queries), strict=True)
        dtype = _precision(q, streams[0][1])  # before the keys are copied several times over
        q = _gather(q.to(dtype), *self.queries)
        k, v = (
            torch.cat([_gather(pair[i].to(dtype), *self.keys) for pair in streams], 2)
            for i in (0, 1)
        )
        # [B, tiles, tokens, n_heads, d]: tiles join the heads
        q, k, v = (x.transpose(2, 3).flatten(1, 2) for x in (q, k, v))
        out = _softmax(q, k, v, self.mask.repeat_interleave(n_heads, 0)[None])
        out = out.to(streams[0][1].dtype)
        out = out.reshape(batch, *tiles, n_heads, *side, -1).permute(0, 1, 4, 2, 5, 3, 6)
        # The last tile of an axis may repeat its last query: cut the copies.
        return out.flatten(3, 4).flatten(1, 2)[:, :h, :w]


def _precision(q: Tensor, v: Tensor) -> torch.dtype:
    """That of v, but on a CPU that of q where gradients are wanted.

    The backward pass of the CPU's kernel is nearly twice as fast in float32 as in bf16.
    """
    return q.dtype if q.device.type == "cpu" and torch.is_grad_enabled() else v.dtype


def _softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ)v on `[B, heads, tokens, d]`; mask True where a query sees a key."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cut `[B, h, w, n_heads, d]` into tiles `[B, tiles, tokens, n_heads, d]`."""
    (tr, nr), (tc, nc) = rows.shape, columns.shape
    if tr * tc > 1:
        x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
    x = x.reshape(len(x), tr, nr, tc, nc, *x.shape[3:]).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


def _axis(n: int, kernel: int, tile: int) -> _Axis:
    kernel, tile = min(kernel, n), min(tile, n)
    length = min(tile + kernel - 1, n)
    queries = torch.arange(0, n, tile)[:, None] + torch.arange(tile)
    queries = queries.clamp(max=n - 1)
    window = window_start(queries, n, kernel)
    keys = window[:, :1].clamp(max=n - length) + torch.arange(length)
    offset = keys[:, None, :] - window[:, :, None]
    return _Axis(queries, keys, (offset >= 0) & (offset < kernel))
