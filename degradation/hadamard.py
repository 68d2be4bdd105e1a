"""Compressed sensing without a matrix: rows of a block Hadamard transform."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from degradation.base import Diagonalisable, Shape, full_precision, per_image, scaled

_RADIX = 64  # a pass is a product with a matrix of at most this size


class BlockHadamard(Diagonalisable):
    """y = P W D x: random signs D, the Walsh-Hadamard transform W of blocks, M rows P of it.

    signs: ±1, `[B, C·h·w]` (int8 is enough); index: rows that are kept, int64 `[B, M]`, each once.
    The blocks divide the flattened image; they have the largest power of two that divides C·h·w
    values, 4096 at 3×64×64. All rows are orthonormal, so s = 1 and U = I, and a product takes
    O(n log n). Raises ValueError if C·h·w is odd, because then there are no blocks.
    """

    tensors = ("signs", "index", "unit")

    def __init__(self, signs: Tensor, index: Tensor, image_shape: Shape):
        self.image_shape = image_shape
        n = self.numel
        if n % 2:
            raise ValueError(f"Hadamard blocks need an even number of values, not {image_shape}")
        if signs.shape != (len(index), n) or index.ndim != 2:
            raise ValueError(
                f"signs must be [B, {n}] and rows [B, M] for images {image_shape}, not "
                f"{tuple(signs.shape)} and {tuple(index.shape)}"
            )
        if not (signs.abs() == 1).all():
            raise ValueError("signs must be 1 and −1 only")
        self.block = n & -n
        self.signs, self.index = signs, index
        self.unit = torch.ones(len(signs), 1, device=signs.device)  # carries the precision

    @property
    def s(self) -> Tensor:
        return self.unit.expand(-1, self.index.shape[1])

    def Vt(self, x: Tensor) -> Tensor:
        x = scaled(self.flatten(x), self.signs)
        return self._transform(x).gather(-1, self._index(x))

    def V(self, z: Tensor) -> Tensor:
        z = full_precision(z)
        x = z.new_zeros(*z.shape[:-1], self.numel).scatter(-1, self._index(z), z)
        return self.unflatten(scaled(self._transform(x), self.signs))

    def Ut(self, y: Tensor) -> Tensor:
        return full_precision(y)

    def U(self, z: Tensor) -> Tensor:
        return full_precision(z)

    @property
    def rows(self) -> Tensor:
        return torch.ones_like(self.index, dtype=torch.bool)

    def _transform(self, x: Tensor) -> Tensor:
        return walsh_hadamard(x.unflatten(-1, (-1, self.block))).flatten(-2)

    def _index(self, like: Tensor) -> Tensor:
        return per_image(self.index, like).expand(*like.shape[:-1], -1)


def walsh_hadamard(x: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform of `[..., 2^k]`, in natural order.

    It is symmetric and its own inverse, and a Kronecker product of small ones: a pass applies one
    of them to the last digits of the index and moves these to the front.
    """
    left = x.shape[-1]
    # A compiler keeps the matrices itself.
    constant = _hadamard.__wrapped__ if torch.compiler.is_compiling() else _hadamard
    with torch.autocast(x.device.type, enabled=False):
        while left > 1:
            radix = min(_RADIX, left)
            digits = x.unflatten(-1, (-1, radix))
            x = (digits @ constant(radix, x.device, x.dtype)).mT.flatten(-2)
            left //= radix
    return x


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later, when gradients may be wanted
def _hadamard(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal Hadamard matrix `[n, n]`: the sign of row i, column j is that of the parity
    of the bits that i and j share (Sylvester)."""
    index = torch.arange(n)
    bits = (index[:, None] & index)[..., None] >> torch.arange(n.bit_length()) & 1
    signs = 1 - 2 * (bits.sum(-1) % 2)
    return (signs.double() / math.sqrt(n)).to(device, dtype)
