"""Exact joint attention, global or over neighbourhoods, of queries over several key streams.

A neighbourhood is the k×k window around the query, pushed inside at the borders, so every query
sees exactly k² keys of each stream (Hassani et al., "Neighborhood Attention Transformer", 2023).
One softmax runs over the keys of all streams (paper, A.2.2). A backend is an object for one map
and window, `backend(q, streams)`, and all of them compute the same; the device decides which.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from networks.attention import fused
from networks.attention.flex import FlexNeighbourhood
from networks.attention.tiled import Streams, TiledNeighbourhood, global_attention

Attention = Callable[[Tensor, Streams], Tensor]
"""softmax(q·kᵀ)v of `(q, streams)` under one softmax over the keys of all streams.

q, k and v are `[B, h, w, n_heads, d]`, and so is the result, in the type of v. Logits are not
scaled.
"""

# Over neighbourhoods, by name: made of (h, w, kernel, streams, device).
BACKENDS: dict[str, Callable[[int, int, int, int, torch.device], Attention]] = {
    "tiled": TiledNeighbourhood,
    "flex": FlexNeighbourhood,
    "natten": fused.FusedNeighbourhood,
}

_forced: list[str] = []


def make_attention(
    h: int,
    w: int,
    kernel: int | None,
    streams: int,
    device: torch.device,
    d_head: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Attention:
    """The attention of an h×w map; kernel: side of the neighbourhood, None for global attention.

    What depends on the map alone is computed here. d_head and dtype (of the weights) decide with
    the device which backend can run.
    """
    if kernel is None or (kernel >= h and kernel >= w):
        return global_attention
    if forced := backend_in_use():
        name = forced
    elif device.type != "cuda" or d_head < 16 or dtype == torch.float64:
        name = "tiled"  # FlexAttention takes no heads below 16 channels and no float64
    else:
        fits = d_head % 8 == 0 and 1 < kernel <= min(h, w)
        name = "natten" if fused.has_kernels() and fits else "flex"
    return BACKENDS[name](h, w, kernel, streams, device)


def backend_in_use() -> str | None:
    """The backend that `use_backend` demands."""
    return _forced[-1] if _forced else None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Demand one of the `BACKENDS` for all neighbourhoods inside; for tests and benchmarks."""
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend '{name}'; known are {', '.join(BACKENDS)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()
