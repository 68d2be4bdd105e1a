"""The contract of a linear degradation operator, and what follows from its SVD."""

import copy
import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

Shape = tuple[int, int, int]  # (C, h, w) of an image
Device = torch.device | str


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """View `[B, ...]` values so that they broadcast against a stack `[B, K, ...]` as well."""
    return value.unsqueeze(1) if like.ndim == value.ndim + 1 else value


def scaled(x: Tensor, factors: Tensor) -> Tensor:
    """`[B, (K,) ...]` times the factors `[B, ...]` of each operator."""
    return x * per_image(factors, x)


def apply_matrix(matrix: Tensor, x: Tensor) -> Tensor:
    """`[B, m, n]` times `[B, (K,) n]`, in the precision of the operator even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(matrix.dtype, x.dtype)
        matrix, x = matrix.to(dtype), x.to(dtype)
        # A row vector times a matrix: several times faster than batched matrix times column.
        rows = x.unsqueeze(1) if x.ndim == 2 else x
        if rows.shape[1] == 1 and rows.device.type == "cpu" and torch.compiler.is_compiling():
            # Of a single row the compiler would make a sum of its own, which is much slower.
            product = torch.bmm(rows.expand(-1, 2, -1), matrix.mT)[:, :1]
        else:
            product = torch.bmm(rows, matrix.mT)
        return product.squeeze(1) if x.ndim == 2 else product


def by_channel(matrix: Tensor, x: Tensor) -> Tensor:
    """`[B, m, n]` times each channel, `[B, (K,) C, n]`; as `apply_matrix`."""
    return apply_matrix(matrix, x.flatten(1, -2)).unflatten(1, x.shape[1:-1])


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """`[B, p, q]` times `[B, (K,) q, n]`, in the precision of the operator even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        x = full_precision(x)
        dtype = torch.promote_types(matrix.dtype, x.dtype)
        return per_image(matrix, x).to(dtype) @ x.to(dtype)


def full_precision(x: Tensor) -> Tensor:
    """Float64 stays; anything shorter, such as an activation under autocast, becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


class LinearOperator:
    """A batch of B linear operators H on images of shape (C, h, w), known by H, Hᵀ and H†.

    Two forms go through every method, told apart by the number of dimensions: one image for each
    operator, `[B, C, h, w]` with measurements `[B, M]`, or a stack of K images that share it,
    `[B, K, C, h, w]` with `[B, K, M]`. `tensors` names the attributes that hold one entry for each
    image of the batch, `operators` those that hold another batch of as many operators.
    """

    image_shape: Shape
    tensors: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()

    def H(self, x: Tensor) -> Tensor:
        """Measure: `[B, (K,) C, h, w]` to `[B, (K,) M]`."""
        raise NotImplementedError

    def H_adjoint(self, y: Tensor) -> Tensor:
        """Hᵀy: `[B, (K,) M]` to `[B, (K,) C, h, w]`."""
        raise NotImplementedError

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        """Hᵀ(HHᵀ + σ²I)⁻¹y; at noise level σ = 0 the Moore-Penrose pseudo-inverse H†y."""
        raise NotImplementedError

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The image nearest to x whose measurement is y: x + H†(y − Hx)."""
        return x + self.H_pinv(y - self.H(x))

    @property
    def rows(self) -> Tensor:
        """Which measurement rows exist, bool `[B, M]`."""
        raise NotImplementedError

    @property
    def largest_gain(self) -> Tensor:
        """‖H‖ `[B]`, roughly if the operator has no SVD."""
        raise NotImplementedError

    def measurement_image(self, y: Tensor) -> Tensor | None:
        """Measurements `[B, M]` as pictures `[B, C', h', w']`, or None if they are none."""
        return None

    # ---- the batch ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(getattr(self, self.tensors[0]))

    def __getitem__(self, index: slice | Tensor | list[int]) -> Self:
        """The operators of a sub-batch."""
        return self._map(lambda t: t[index])

    def expand(self, n: int) -> Self:
        """The batch n times over, n·B operators in n blocks; a batch of one shares its storage."""
        return self._map(lambda t: t[None].expand(n, *t.shape).flatten(0, 1))

    def to(self, *args, **kwargs) -> Self:
        """Move or cast, with the arguments of `Tensor.to`; only real numbers change type."""

        def convert(t: Tensor) -> Tensor:
            moved = t.to(*args, **kwargs)
            return moved if t.is_floating_point() else moved.to(t.dtype)

        return self._map(convert)

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        other = copy.copy(self)
        for name in self.tensors:
            setattr(other, name, fn(getattr(self, name)))
        for name in self.operators:
            setattr(other, name, getattr(self, name)._map(fn))
        return other

    # ---- helpers for operators ----------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Number of values of an image, C·h·w."""
        return math.prod(self.image_shape)

    def checked(self, x: Tensor) -> Tensor:
        """Images in float32 or float64. Raises ValueError for another shape."""
        shape = tuple(x.shape[-3:])
        if shape != self.image_shape:
            raise ValueError(f"this operator acts on images {self.image_shape}, not {shape}")
        return full_precision(x)

    def flatten(self, x: Tensor) -> Tensor:
        """Images `[B, (K,) C, h, w]` to vectors `[B, (K,) C·h·w]`."""
        return self.checked(x).flatten(-3)

    def unflatten(self, x: Tensor) -> Tensor:
        """Vectors `[B, (K,) C·h·w]` to images."""
        return x.unflatten(-1, self.image_shape)

    def planes(self, v: Tensor) -> Tensor:
        """Vectors `[B, (K,) C·n]` by channel, `[B, (K,) C, n]`."""
        return full_precision(v).unflatten(-1, (self.image_shape[0], -1))


class Diagonalisable(LinearOperator):
    """Operators with a thin SVD, H = U diag(s) Vᵀ.

    A subclass defines `s` and the four maps; the rest is derived here and overridden if an
    operator can do it faster. Spectral coordinates are `[B, R]` or `[B, K, R]`.
    """

    @property
    def s(self) -> Tensor:
        """Singular values `[B, R]`, zero for a dropped or missing direction."""
        raise NotImplementedError

    def Vt(self, x: Tensor) -> Tensor:
        """Coordinates of images in the right singular directions (zero where s = 0)."""
        raise NotImplementedError

    def V(self, z: Tensor) -> Tensor:
        """Transpose of `Vt`: spectral coordinates to images."""
        raise NotImplementedError

    def Ut(self, y: Tensor) -> Tensor:
        """Coordinates of measurements in the left singular directions (zero where s = 0)."""
        raise NotImplementedError

    def U(self, z: Tensor) -> Tensor:
        """Transpose of `Ut`: spectral coordinates to measurements."""
        raise NotImplementedError

    def H(self, x: Tensor) -> Tensor:
        return self.U(scaled(self.Vt(x), self.s))

    def H_adjoint(self, y: Tensor) -> Tensor:
        return self.V(scaled(self.Ut(y), self.s))

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        return self.V(scaled(self.Ut(y), regularised_gain(self.s, noise_level)))

    @property
    def largest_gain(self) -> Tensor:
        return self.s.amax(1)


def diagonalisable(operator: LinearOperator, wanted: str, advice: str = "") -> Diagonalisable:
    """The operator, which `wanted` needs the SVD of. Raises ValueError if it has none."""
    if not isinstance(operator, Diagonalisable):
        raise ValueError(
            f"{wanted} needs the singular value decomposition of the operator, which "
            f"{type(operator).__name__} does not have{advice}"
        )
    return operator


def regularised_gain(s: Tensor, noise_level: float | Tensor) -> Tensor:
    """s / (s² + σ²), zero where s = 0: `[B, ...]` values, a number or `[B]`."""
    if isinstance(noise_level, Tensor):
        sigma = noise_level.to(s.device, s.dtype)
    else:  # filled on the device: nothing is copied to it
        sigma = torch.full((), noise_level, dtype=s.dtype, device=s.device)
    sigma = sigma.reshape(sigma.shape + (1,) * (s.ndim - sigma.ndim))
    exists = s > 0
    return torch.where(exists, s, 0) / torch.where(exists, s.square() + sigma.square(), 1)
