"""Operators that mix the channels and then measure each mixture alike: grey images, and more."""

from collections.abc import Callable

import torch
from torch import Tensor

from degradation.base import Diagonalisable, diagonalisable, full_precision, multiply

Map = Callable[[Tensor], Tensor]


class ChannelProduct(Diagonalisable):
    """H = A ⊗ S: the channels are mixed by A, and S measures each of the m mixtures.

    mixing: A, `[B, m, C]`, on any device (so small, it is factorised fastest on the CPU); measured:
    S, a batch of operators on images (1, h, w). y holds S of one mixture after the other.

    The SVD of a Kronecker product is that of its factors,
    (U_A ⊗ U_S) diag(s_A ⊗ s_S) (V_A ⊗ V_S)ᵀ, so it is as exact as theirs. Singular values of A
    below `tol` times the largest are dropped, from H too.
    """

    tensors = ("right", "left", "values", "present")
    operators = ("measured",)

    def __init__(self, mixing: Tensor, measured: Diagonalisable, tol: float = 1e-3):
        shape, name = measured.image_shape, type(measured).__name__
        if shape[0] != 1:
            raise ValueError(f"mixtures are images of one channel, but {name} measures {shape}")
        diagonalisable(measured, "a product of operators")
        if mixing.ndim != 3 or len(mixing) != len(measured):
            raise ValueError(
                f"mixing must be [{len(measured)}, m, C] for as many operators, "
                f"not {tuple(mixing.shape)}"
            )
        self.image_shape = (mixing.shape[2], *shape[1:])
        self.measured = measured
        mixing = full_precision(mixing)
        U, s, Vt = torch.linalg.svd(mixing.double(), full_matrices=False)
        keep = s > tol * s.amax(-1, keepdim=True)
        device, dtype = measured.rows.device, mixing.dtype
        self.right = (Vt * keep[..., None]).to(device, dtype)  # [B, r, C], r = min(m, C)
        self.left = (U * keep[:, None]).to(device, dtype)  # [B, m, r]
        self.values = (s * keep).to(device, dtype)  # [B, r]
        self.present = (mixing != 0).any(-1).to(device)  # [B, m]

    @property
    def s(self) -> Tensor:
        return (self.values[:, :, None] * self.measured.s[:, None]).flatten(1)

    @property
    def rows(self) -> Tensor:
        return (self.present[:, :, None] & self.measured.rows[:, None]).flatten(1)

    def Vt(self, x: Tensor) -> Tensor:
        return self._measure(self.right, self.measured.Vt, x)

    def V(self, z: Tensor) -> Tensor:
        return self._spread(self.right, self.measured.V, z)

    def Ut(self, y: Tensor) -> Tensor:
        mixed = multiply(self.left.mT, self._vectors(y, self.present))
        return self._each(self.measured.Ut, mixed).flatten(-2)

    def U(self, z: Tensor) -> Tensor:
        mixed = self._each(self.measured.U, self._vectors(z, self.values))
        return multiply(self.left, mixed).flatten(-2)

    def H(self, x: Tensor) -> Tensor:
        return self._measure(self._matrix, self.measured.H, x)

    def H_adjoint(self, y: Tensor) -> Tensor:
        return self._spread(self._matrix, self.measured.H_adjoint, y)

    def measurement_image(self, y: Tensor) -> Tensor | None:
        picture = self.measured.measurement_image(self._vectors(y, self.present))
        return None if picture is None else picture.flatten(-4, -3)

    @property
    def _matrix(self) -> Tensor:
        """A, less what was dropped of it, `[B, m, C]`."""
        return multiply(self.left, self.values[..., None] * self.right)

    def _vectors(self, y: Tensor, like: Tensor) -> Tensor:
        """Vectors `[B, (K,) m·n]` as `[B, (K,) m, n]`, m that of `like`, `[B, m]`."""
        return full_precision(y).unflatten(-1, (like.shape[1], -1))

    def _measure(self, matrix: Tensor, fn: Map, x: Tensor) -> Tensor:
        """S's map of images, of what a matrix `[B, m, C]` mixes of x, as `[B, (K,) m·n]`."""
        mixed = multiply(matrix, self.checked(x).flatten(-2))
        return self._each(lambda v: fn(self.measured.unflatten(v)), mixed).flatten(-2)

    def _spread(self, matrix: Tensor, fn: Map, y: Tensor) -> Tensor:
        """Transpose of `_measure` by the transposed map of S."""
        mixed = self._each(lambda v: fn(v).flatten(-3), self._vectors(y, matrix))
        return multiply(matrix.mT, mixed).unflatten(-1, self.image_shape[1:])

    def _each(self, fn: Map, x: Tensor) -> Tensor:
        """A map of stacks of vectors, of each of `[B, (K,) m, n]`."""
        return fn(x.flatten(1, -2)).unflatten(1, x.shape[1:-1])
