"""Exact joint attention, global or over neighbourhoods, of queries over several key streams.

A neighbourhood is the k×k window around the query, pushed inside at the borders, so every query
sees exactly k² keys of each stream (Hassani et al., "Neighborhood Attention Transformer", 2023).
One softmax runs over the keys of all streams (paper, A.2.2).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SINGLE_TILE = 256  # up to this many tokens one masked attention over the whole map is cheapest
_TILE = 8  # side of a tile of queries on larger maps


def attention(q: Tensor, streams: list[tuple[Tensor, Tensor]], kernel: int | None) -> Tensor:
    """softmax(q·kᵀ)v, `[B, h, w, n_heads, d]` throughout.

    streams: pairs (k, v); kernel: side of the neighbourhood, None for global attention.
    """
    h, w = q.shape[1:3]
    if kernel is None or (kernel >= h and kernel >= w):
        return _global_attention(q, streams)
    return _neighbourhood_attention(q, streams, kernel)


def _global_attention(q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
    h, w = q.shape[1:3]
    k, v = (torch.cat([pair[i].flatten(1, 2) for pair in streams], 1) for i in (0, 1))
    q, k, v = (x.transpose(1, 2) for x in (q.flatten(1, 2), k, v))  # [B, n_heads, tokens, d]
    out = _softmax_attention(q, k, v)
    return out.transpose(1, 2).unflatten(1, (h, w))


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ)v on `[B, heads, tokens, d]`; mask True where a query sees a key."""
    dtype = v.dtype
    if q.device.type == "cpu":
        # The backward pass of the CPU kernel is nearly twice as fast in float32 as in bf16.
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q, k, v.to(q), attn_mask=mask, scale=1.0)
    else:
        q, k = q.to(dtype), k.to(dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return out.to(dtype)


class _Axis(NamedTuple):
    """Tiles of one axis: `[tiles, T]` query and `[tiles, L]` key indices, `[tiles, T, L]` mask."""

    queries: Tensor
    keys: Tensor
    mask: Tensor


def _neighbourhood_attention(
    q: Tensor, streams: list[tuple[Tensor, Tensor]], kernel: int
) -> Tensor:
    batch, h, w, n_heads, _ = q.shape
    rows, columns, mask = _tiles(h, w, kernel, len(streams), q.device)
    tiles = len(rows.queries), len(columns.queries)
    q = _gather(q, rows.queries, columns.queries)
    k, v = (
        torch.cat([_gather(pair[i], rows.keys, columns.keys) for pair in streams], 2)
        for i in (0, 1)
    )  # [B, tiles, tokens, n_heads, d]
    q, k, v = (x.transpose(2, 3).flatten(1, 2) for x in (q, k, v))  # tiles join the heads
    bias = mask.repeat_interleave(n_heads, 0)[None]
    out = _softmax_attention(q, k, v, bias)
    side = rows.queries.shape[1], columns.queries.shape[1]
    out = out.reshape(batch, *tiles, n_heads, *side, -1).permute(0, 1, 4, 2, 5, 3, 6)
    # The last tile of an axis may repeat its last query: cut the copies.
    return out.flatten(3, 4).flatten(1, 2)[:, :h, :w]


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cut `[B, h, w, n_heads, d]` into tiles `[B, tiles, tokens, n_heads, d]`."""
    (tr, nr), (tc, nc) = rows.shape, columns.shape
    if tr * tc > 1:
        x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
    x = x.reshape(len(x), tr, nr, tc, nc, *x.shape[3:]).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


@lru_cache(maxsize=64)
def _tiles(
    h: int, w: int, kernel: int, streams: int, device: torch.device
) -> tuple[_Axis, _Axis, Tensor]:
    """The tiling of a map and the mask `[tiles, queries, keys]` of its windows."""
    tile = max(h, w) if h * w <= _SINGLE_TILE else _TILE
    rows, columns = _axis(h, kernel, tile, device), _axis(w, kernel, tile, device)
    mask = rows.mask[:, None, :, None, :, None] & columns.mask[None, :, None, :, None, :]
    mask = mask.flatten(4, 5).flatten(2, 3).flatten(0, 1)
    return rows, columns, mask.repeat(1, 1, streams)


def _axis(n: int, kernel: int, tile: int, device: torch.device) -> _Axis:
    kernel, tile = min(kernel, n), min(tile, n)
    length = min(tile + kernel - 1, n)
    queries = torch.arange(0, n, tile)[:, None] + torch.arange(tile)
    queries = queries.clamp(max=n - 1)
    window = (queries - kernel // 2).clamp(0, n - kernel)
    keys = window[:, :1].clamp(max=n - length) + torch.arange(length)
    offset = keys[:, None, :] - window[:, :, None]
    mask = (offset >= 0) & (offset < kernel)
    return _Axis(queries.to(device), keys.to(device), mask.to(device))
