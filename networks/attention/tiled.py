"""Attention by PyTorch's fused softmax attention: whole maps, and tiles of queries for windows."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

_SINGLE_TILE = 64  # up to this many tokens one masked attention over the whole map is cheapest
_NARROW, _ROWS = 16, 4  # on maps of so many columns at most a tile has all of them and few rows
_TILE = 8  # side of a tile of queries on larger maps
_COPIED = 2**23  # values of keys that are copied at a time where no gradients are wanted

Streams = list[tuple[Tensor, Tensor]]
"""Pairs (k, v) of maps `[B, h, w, n_heads, d]`."""
Tiles = list[tuple[slice, slice]]
"""Rows and columns of tiles, all of one size."""


def global_attention(q: Tensor, streams: Streams) -> Tensor:
    """Every query sees every key."""
    v = streams[0][1]
    return sequences(_softmax, q, streams, _precision(q, v)).to(v.dtype)


def sequences(
    attend: Callable[..., Tensor], q: Tensor, streams: Streams, dtype: torch.dtype
) -> Tensor:
    """`attend(q, k, v)` on `[B, n_heads, tokens, d]`, the keys of all streams in one sequence."""
    k, v = (torch.cat([pair[i].flatten(1, 2) for pair in streams], 1) for i in (0, 1))
    parts = (x.to(dtype).transpose(1, 2) for x in (q.flatten(1, 2), k, v))
    return attend(*parts).transpose(1, 2).unflatten(1, q.shape[1:3])


class TiledNeighbourhood:
    """Tiles of queries, each with the keys that any of its windows holds, and a mask."""

    def __init__(self, h: int, w: int, kernel: int, streams: int, device: torch.device):
        n, m = _tile(h, w)
        (rows, row_mask), (columns, column_mask) = _axis(h, kernel, n), _axis(w, kernel, m)
        mask = row_mask[:, None, :, None, :, None] & column_mask[None, :, None, :, None, :]
        mask = mask.flatten(4, 5).flatten(2, 3).flatten(0, 1).repeat(1, 1, streams)
        self.mask = mask[None].to(device)  # [1, tiles, queries, keys]
        self.side = row_mask.shape[1], column_mask.shape[1]
        self.keys = [(r, c) for r in rows for c in columns]

    def __call__(self, q: Tensor, streams: Streams) -> Tensor:
        n = max(1, _COPIED // (self.mask.shape[1] * self.mask.shape[3] * q.shape[3:].numel()))
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(q) <= n:
            return self._attend(q, streams)
        # Nothing is kept for a backward pass, so that parts of the batch need less memory.
        parts = [slice(i, i + n) for i in range(0, len(q), n)]
        return torch.cat([self._attend(q[i], [(k[i], v[i]) for k, v in streams]) for i in parts])

    def _attend(self, q: Tensor, streams: Streams) -> Tensor:
        n, m = self.side
        h, w, n_heads = q.shape[1:4]
        dtype = _precision(q, streams[0][1])  # before the keys are copied several times over
        q = F.pad(q.to(dtype), (0, 0, 0, 0, 0, -w % m, 0, -h % n))
        # [B · n_heads, tiles, tokens, d]
        tiles = "(b n) (t u) (r c) d"
        q = rearrange(q, f"b (t r) (u c) n d -> {tiles}", r=n, c=m)
        maps = ([pair[i].to(dtype) for pair in streams] for i in (0, 1))
        if torch.compiler.is_compiling():
            k, v = (_cut(of, self.keys) for of in maps)
        else:
            k, v = (_Cut.apply(self.keys, *of) for of in maps)
        out = _softmax(q, k, v, self.mask).to(streams[0][1].dtype)
        out = rearrange(out, f"{tiles} -> b (t r) (u c) n d", n=n_heads, u=-(-w // m), r=n)
        return out[:, :h, :w]


def _tile(h: int, w: int) -> tuple[int, int]:
    """Rows and columns of a tile: the fastest of several on a CPU; a GPU gets the same."""
    if h * w <= _SINGLE_TILE:
        return h, w
    return (_ROWS, w) if w <= _NARROW else (_TILE, _TILE)


def _precision(q: Tensor, v: Tensor) -> torch.dtype:
    # The backward pass of the CPU's kernel is nearly twice as fast in float32 as in bf16.
    return q.dtype if q.device.type == "cpu" and torch.is_grad_enabled() else v.dtype


def _softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ)v on `[B, heads, tokens, d]`; mask True where a query sees a key."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def window_start(position: Tensor, n: int, kernel: int) -> Tensor:
    """First index of the window of `kernel` positions around a position on an axis of n."""
    return (position - kernel // 2).clamp(0, n - kernel)


def _axis(n: int, kernel: int, tile: int) -> tuple[list[slice], Tensor]:
    """Tiles of one axis: the keys of each, and `[tiles, queries, keys]` who sees whom."""
    kernel, tile = min(kernel, n), min(tile, n)
    length = min(tile + kernel - 1, n)
    # Queries beyond the last are cut off again; they see what the last one sees.
    queries = torch.arange(0, n, tile)[:, None] + torch.arange(tile)
    window = window_start(queries.clamp(max=n - 1), n, kernel)
    first = [min(max(i - kernel // 2, 0), n - length) for i in range(0, n, tile)]
    offset = (torch.tensor(first)[:, None] + torch.arange(length))[:, None] - window[:, :, None]
    return [slice(i, i + length) for i in first], (offset >= 0) & (offset < kernel)


def _cut(streams: list[Tensor], tiles: Tiles) -> Tensor:
    """The tokens of every tile of S maps, in one copy: `[B · n_heads, tiles, S · tokens, d]`."""
    maps = [x.movedim(3, 1) for x in streams]
    pieces = torch.stack([x[:, :, r, c] for r, c in tiles for x in maps], 2)
    return pieces.flatten(0, 1).unflatten(1, (len(tiles), -1)).flatten(2, 4)


class _Cut(torch.autograd.Function):
    """`_cut`, whose backward pass adds each tile where it was, instead of a map for each."""

    @staticmethod
    def forward(ctx: Any, tiles: Tiles, *streams: Tensor) -> Tensor:
        ctx.tiles, ctx.count, ctx.shape = tiles, len(streams), streams[0].shape
        return _cut(list(streams), tiles)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        batch, _, _, n_heads, d = ctx.shape
        rows, columns = ctx.tiles[0]
        side = rows.stop - rows.start, columns.stop - columns.start
        pieces = grad.reshape(batch, n_heads, len(ctx.tiles), ctx.count, *side, d)
        maps = grad.new_zeros(ctx.count, *ctx.shape)
        for tile, (r, c) in enumerate(ctx.tiles):
            maps[:, :, r, c] += pieces[:, :, tile].permute(2, 0, 3, 4, 1, 5)
        return None, *maps
