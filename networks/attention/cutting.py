"""Overlapping tiles of a map's tokens, cut out in one copy."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Tiles = list[tuple[slice, slice]]


def cut(streams: list[Tensor], tiles: Tiles) -> Tensor:
    """The tokens of every tile, one stream after the other.

    streams: S maps `[B, h, w, n_heads, d]`; tiles: rows and columns, all of one size L×M. Returns
    `[B · n_heads, tiles, S · L · M, d]`.
    """
    if torch.compiler.is_compiling():
        return _cut(streams, tiles)
    return _Cut.apply(tiles, *streams)


def _cut(streams: list[Tensor] | tuple[Tensor, ...], tiles: Tiles) -> Tensor:
    maps = [x.movedim(3, 1) for x in streams]
    pieces = torch.stack([x[:, :, r, c] for r, c in tiles for x in maps], 2)
    return pieces.flatten(0, 1).unflatten(1, (len(tiles), -1)).flatten(2, 4)


class _Cut(torch.autograd.Function):
    """With a backward pass that adds each tile where it was, instead of a map for each."""

    @staticmethod
    def forward(ctx: Any, tiles: Tiles, *streams: Tensor) -> Tensor:
        ctx.tiles, ctx.count, ctx.shape = tiles, len(streams), streams[0].shape
        return _cut(streams, tiles)

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
