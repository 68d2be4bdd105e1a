"""Neighbourhood attention by FlexAttention: a compiled kernel, which skips empty blocks of keys."""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from networks.attention.tiled import Streams, sequences, window_start
from networks.compiling import allow_graphs


class FlexNeighbourhood:
    """All streams as one sequence of keys, and a block mask of the windows.

    Compiled where tensors are on a GPU; elsewhere FlexAttention's own eager form, which is dense.
    """

    def __init__(self, h: int, w: int, kernel: int, streams: int, device: torch.device):
        self.mask = _block_mask(h, w, min(kernel, h), min(kernel, w), streams, device)

    def __call__(self, q: Tensor, streams: Streams) -> Tensor:
        attend = partial(_attend(q), block_mask=self.mask, scale=1.0)
        return sequences(attend, q, streams, streams[0][1].dtype)


def _attend(q: Tensor) -> Any:
    if not q.is_cuda or torch.compiler.is_compiling():  # a graph around it compiles it
        return flex_attention
    return _compiled()


@cache
def _compiled() -> Any:
    # A graph for each size of a batch; without one the scores of all tokens would be stored.
    allow_graphs()
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@cache
@torch.inference_mode(False)  # kept for later, when gradients may be wanted
def _block_mask(h: int, w: int, rows: int, columns: int, streams: int, device: torch.device) -> Any:
    def sees(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        key = key % (h * w)  # the same place in every stream
        row = key // w - window_start(query // w, h, rows)
        column = key % w - window_start(query % w, w, columns)
        return (row >= 0) & (row < rows) & (column >= 0) & (column < columns)

    tokens = h * w
    return create_block_mask(sees, None, None, tokens, streams * tokens, device=str(device))
