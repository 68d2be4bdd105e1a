"""Any linear operator with few rows, given as a dense matrix."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from degradation.base import Degradation, full_precision

# Below this ratio of singular values float32 products cost accuracy: they are redone in float64.
_WELL_CONDITIONED = 0.1


class DenseMatrix(Degradation):
    """y = Wx for a matrix W of M rows for each image, kept as Vᵀ and an M×M factor.

    matrix: `[B, M, C·h·w]`; a row of zeros does not exist. The SVD comes from a float64
    eigendecomposition of the Gram matrix WWᵀ = U diag(s²) Uᵀ. Directions with s below `tol` times
    the largest singular value are dropped, from H too: dependent rows lose them.
    """

    tensors = ("right", "left", "values", "present")

    def __init__(self, matrix: Tensor, image_shape: tuple[int, int, int], tol: float = 1e-3):
        self.image_shape = image_shape
        if matrix.ndim != 3 or matrix.shape[-1] != self.numel:
            raise ValueError(
                f"a matrix for images {self.image_shape} must be [B, M, {self.numel}], "
                f"not {tuple(matrix.shape)}"
            )
        matrix = full_precision(matrix)
        with torch.autocast(matrix.device.type, enabled=False):
            s, left, right = _factorise(matrix, tol)
            largest = s.amax(-1, keepdim=True)
            if ((s > 0) & (s < _WELL_CONDITIONED * largest)).any():
                s, left, right = _factorise(matrix.double(), tol)
        self.values = s.to(matrix)  # [B, M]
        self.left = left.to(matrix)  # U [B, M, R]
        self.right = right.to(matrix)  # Vᵀ [B, R, C·h·w]
        self.present = matrix.abs().amax(-1) > 0

    @property
    def s(self) -> Tensor:
        return self.values

    def Vt(self, x: Tensor) -> Tensor:
        return _apply(self.right, self.flatten(x))

    def V(self, z: Tensor) -> Tensor:
        return self.unflatten(_apply(self.right.mT, full_precision(z)))

    def Ut(self, y: Tensor) -> Tensor:
        return _apply(self.left.mT, full_precision(y))

    def U(self, z: Tensor) -> Tensor:
        return _apply(self.left, full_precision(z))

    @property
    def rows(self) -> Tensor:
        return self.present


def _factorise(matrix: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """s, U and Vᵀ of `[B, M, N]` matrices, the products with them in their own precision."""
    gram = torch.bmm(matrix, matrix.mT).double()
    with _one_thread():
        squares, left = torch.linalg.eigh(gram)
    s = squares.clamp(min=0).sqrt()
    keep = s > tol * s.amax(-1, keepdim=True)
    inverse = torch.where(keep, s, 1).reciprocal() * keep
    right = torch.bmm((left * inverse[:, None]).mT.to(matrix), matrix)
    return s * keep, left * keep[:, None], right


@contextmanager
def _one_thread() -> Iterator[None]:
    """LAPACK on small matrices is ten times faster on one thread than on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """`[B, m, n]` times `[B, (K,) n]`, in the precision of the operator even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        # A row vector times a matrix: several times faster than batched matrix times column.
        return torch.bmm(x.unsqueeze(1), matrix.mT).squeeze(1) if x.ndim == 2 else x @ matrix.mT
