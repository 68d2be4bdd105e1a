"""Neighbourhood attention by the kernels of natten, one pass for each stream.

The passes are merged by their log-sum-exp, which is one softmax over the keys of all streams.
"""

import importlib
import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def has_kernels() -> bool:
    """Whether natten is installed with its compiled kernels, and new enough."""
    try:
        natten = importlib.import_module("natten")
        known = inspect.signature(natten.na2d).parameters
        return bool(natten.HAS_LIBNATTEN) and "return_lse" in known
    except (ImportError, AttributeError):
        return False


class FusedNeighbourhood:
    """Needs natten 0.21.5 or newer; a window must not be larger than the map."""

    def __init__(self, h: int, w: int, kernel: int, streams: int, device: torch.device):
        try:
            self.natten: Any = importlib.import_module("natten")
        except ImportError:
            raise ValueError("attention by natten needs the package: pip install natten") from None
        self.kernel = min(kernel, h), min(kernel, w)

    def __call__(self, q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        h, w = q.shape[1:3]
        dtype = streams[0][1].dtype
        passes = [
            self.natten.na2d(
                q.to(dtype), k.to(dtype), v, self.kernel, scale=1.0, return_lse=len(streams) > 1
            )
            for k, v in streams
        ]
        if len(streams) == 1:
            return passes[0]
        outputs, normalisers = zip(*passes, strict=True)
        merged, _ = self.natten.merge_attentions(
            [out.flatten(1, 2) for out in outputs], [lse.flatten(1, 2) for lse in normalisers]
        )
        return merged.unflatten(1, (h, w))
