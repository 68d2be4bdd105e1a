"""Operators that mix the channels and then measure each mixture alike: grey images, and more."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from degradation.base import Diagonalisable, diagonalisable, full_precision, multiply


class ChannelProduct(Diagonalisable):
    """H = A ⊗ S: the channels are mixed by A, and S measures each of the m mixtures.

    mixing: A, `[B, m, C]`, on any device (so small, it is factorised fastest on the CPU); measured:
    S, a batch of operators on images (1, h, w). y holds S of one mixture after the other.

    The SVD of a Kronecker product is that of its factors,
    (U_A ⊗ U_S) diag(s_A ⊗ s_S) (V_A ⊗ V_S)ᵀ, so it is as exact as theirs. Singular values of A
    below `tol` times the largest are dropped, from H too.
    """

    tensors = ("right", "left", "values", "present")

    def __init__(self, mixing: Tensor, measured: Diagonalisable, tol: float = 1e-3):
        if measured.image_shape[0] != 1:
            raise ValueError(
                f"the mixtures are images of one channel, but {type(measured).__name__} measures "
                f"images {measured.image_shape}"
            )
        diagonalisable(measured, "a product of operators")
        if mixing.ndim != 3 or len(mixing) != len(measured):
            raise ValueError(
                f"mixing must be [{len(measured)}, m, C] for as many operators, "
                f"not {tuple(mixing.shape)}"
            )
        self.image_shape = (mixing.shape[2], *measured.image_shape[1:])
        self.measured = measured
        mixing = full_precision(mixing)
        U, s, Vt = torch.linalg.svd(mixing.double(), full_matrices=False)
        keep = s > tol * s.amax(-1, keepdim=True)
        device, dtype = measured.rows.device, mixing.dtype
        self.right = (Vt * keep[..., None]).to(device, dtype)  # [B, r, C], r = min(m, C)
        self.left = (U * keep[:, None]).to(device, dtype)  # [B, m, r]
        self.values = (s * keep).to(device, dtype)  # [B, r]
        self.present = (mixing != 0).any(-1).to(device)  # [B, m]

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        other = super()._map(fn)
        other.measured = self.measured._map(fn)
        return other

    @property
    def s(self) -> Tensor:
        return (self.values[:, :, None] * self.measured.s[:, None]).flatten(1)

    @property
    def rows(self) -> Tensor:
        return (self.present[:, :, None] & self.measured.rows[:, None]).flatten(1)

    def Vt(self, x: Tensor) -> Tensor:
        return self._measure(self.measured.Vt, multiply(self.right, self._channels(x)))

    def V(self, z: Tensor) -> Tensor:
        return self._images(
            multiply(self.right.mT, self._spread(self.measured.V, self._vectors(z, self.values)))
        )

    def Ut(self, y: Tensor) -> Tensor:
        mixed = multiply(self.left.mT, self._vectors(y, self.present))
        return self._each(self.measured.Ut, mixed).flatten(-2)

    def U(self, z: Tensor) -> Tensor:
        mixed = self._each(self.measured.U, self._vectors(z, self.values))
        return multiply(self.left, mixed).flatten(-2)

    def H(self, x: Tensor) -> Tensor:
        return self._measure(self.measured.H, multiply(self._matrix, self._channels(x)))

    def H_adjoint(self, y: Tensor) -> Tensor:
        mixed = self._spread(self.measured.H_adjoint, self._vectors(y, self.present))
        return self._images(multiply(self._matrix.mT, mixed))

    def measurement_image(self, y: Tensor) -> Tensor | None:
        picture = self.measured.measurement_image(self._vectors(y, self.present))
        return None if picture is None else picture.flatten(-4, -3)

    # ---- the two factors ----------------------------------------------------------------------

    @property
    def _matrix(self) -> Tensor:
        """A, less what was dropped of it, `[B, m, C]`."""
        return multiply(self.left, self.values[..., None] * self.right)

    def _channels(self, x: Tensor) -> Tensor:
        """Images as vectors of each channel, `[B, (K,) C, h·w]`."""
        self.check_shape(x)
        return full_precision(x).flatten(-2)

    def _images(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, self.image_shape[1:])

    def _vectors(self, y: Tensor, like: Tensor) -> Tensor:
        """Vectors `[B, (K,) m·n]` as `[B, (K,) m, n]`, m that of `like`, `[B, m]`."""
        return full_precision(y).unflatten(-1, (like.shape[1], -1))

    def _measure(self, fn: Callable[[Tensor], Tensor], mixed: Tensor) -> Tensor:
        """S's map of images, of each mixture `[B, (K,) m, h·w]`, to vectors `[B, (K,) m·n]`."""
        shape = self.measured.image_shape
        return self._each(lambda x: fn(x.unflatten(-1, shape)), mixed).flatten(-2)

    def _spread(self, fn: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        """S's map to images, of vectors `[B, (K,) m, n]`, to `[B, (K,) m, h·w]`."""
        return self._each(lambda z: fn(z).flatten(-3), vectors)

    def _each(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A map of stacks of vectors, of each of `[B, (K,) m, n]`."""
        return fn(x.flatten(1, -2)).unflatten(1, x.shape[1:-1])
