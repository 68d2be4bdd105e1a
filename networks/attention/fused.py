"""Neighbourhood attention by the kernels of natten, one pass for each stream.

The passes are merged by their log-sum-exp, which is one softmax over the keys of all streams.
"""

from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from networks.attention.tiled import Streams


@cache
def has_kernels() -> bool:
    """Whether natten is installed with its compiled kernels, and new enough."""
    try:
        import natten

        return natten.HAS_LIBNATTEN and "return_lse" in signature(natten.na2d).parameters
    except (ImportError, AttributeError):
        return False


class FusedNeighbourhood:
    """Needs natten 0.21.5 or newer; a window must not be larger than the map."""

    def __init__(self, h: int, w: int, kernel: int, streams: int, device: torch.device):
        try:
            import natten
        except ImportError:
            raise ValueError("attention by natten needs the package: pip install natten") from None
        self.natten: Any = natten
        self.kernel = min(kernel, h), min(kernel, w)

    def __call__(self, q: Tensor, streams: Streams) -> Tensor:
        dtype, several = streams[0][1].dtype, len(streams) > 1
        options = {"kernel_size": self.kernel, "scale": 1.0, "return_lse": several}
        passes = [self.natten.na2d(q.to(dtype), k.to(dtype), v, **options) for k, v in streams]
        if not several:
            return passes[0]
        outputs, normalisers = ([x.flatten(1, 2) for x in of] for of in zip(*passes, strict=True))
        merged, _ = self.natten.merge_attentions(outputs, normalisers)
        return merged.unflatten(1, q.shape[1:3])
