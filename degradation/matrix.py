"""Any linear operator with few rows, given as a dense matrix."""

import torch
from torch import Tensor

from degradation.base import Diagonalisable, Shape, apply_matrix, full_precision, regularised_gain

# Below this ratio of singular values float32 products cost accuracy: Vᵀ is then made in float64.
_WELL_CONDITIONED = 0.1


class DenseMatrix(Diagonalisable):
    """y = Wx for a matrix W of M rows for each image: one large tensor and small factors of it.

    matrix: `[B, M, C·h·w]`; a row of zeros does not exist. The SVD comes from a float64
    eigendecomposition of the Gram matrix WWᵀ = U diag(s²) Uᵀ. Directions with s below `tol` times
    the largest singular value are dropped, from H too.

    W itself is kept where it is well conditioned, so that nothing large is computed to build the
    operator: Vᵀ = (diag(1/s) Uᵀ) W. Otherwise Vᵀ takes its place. With copy=False W is the caller's
    own tensor, which must not change afterwards.
    """

    tensors = ("large", "to_z", "to_y", "left", "values", "present")

    def __init__(self, matrix: Tensor, image_shape: Shape, tol: float = 1e-3, copy: bool = True):
        self.image_shape = image_shape
        if matrix.ndim != 3 or matrix.shape[-1] != self.numel or not matrix.shape[1]:
            raise ValueError(
                f"a matrix for images {self.image_shape} must be [B, M, {self.numel}], "
                f"not {tuple(matrix.shape)}"
            )
        matrix = full_precision(matrix.clone() if copy else matrix)
        self.large = matrix  # W, or Vᵀ [B, M, C·h·w]
        lengths = torch.linalg.vector_norm(matrix, dim=-1)
        if not lengths.isfinite().all():
            raise ValueError("a matrix must hold finite numbers")
        self.present = lengths > 0
        with torch.autocast(matrix.device.type, enabled=False):
            gram = _gram(matrix, self.present)
            self.values, self.left, self.to_z = _decompose(gram, tol)  # Vᵀ = to_z · large
            self.to_y = self.left @ self.left.mT  # H = to_y · large
            self._rework(tol)
        for name in ("values", "left", "to_z", "to_y"):
            setattr(self, name, getattr(self, name).to(matrix.dtype))

    @property
    def s(self) -> Tensor:
        return self.values

    def H(self, x: Tensor) -> Tensor:
        return apply_matrix(self.to_y, apply_matrix(self.large, self.flatten(x)))

    def H_adjoint(self, y: Tensor) -> Tensor:
        seen = apply_matrix(self.to_y.mT, full_precision(y))
        return self.unflatten(apply_matrix(self.large.mT, seen))

    def Vt(self, x: Tensor) -> Tensor:
        return apply_matrix(self.to_z, apply_matrix(self.large, self.flatten(x)))

    def V(self, z: Tensor) -> Tensor:
        seen = apply_matrix(self.to_z.mT, full_precision(z))
        return self.unflatten(apply_matrix(self.large.mT, seen))

    def Ut(self, y: Tensor) -> Tensor:
        return apply_matrix(self.left.mT, full_precision(y))

    def U(self, z: Tensor) -> Tensor:
        return apply_matrix(self.left, full_precision(z))

    @property
    def rows(self) -> Tensor:
        return self.present

    def row_inverse(self, noise_level: float | Tensor) -> Tensor:
        """A small matrix `[B, M, M]`: H†y is `large`ᵀ times its product with y."""
        gain = regularised_gain(self.values, noise_level)
        return self.to_z.mT @ (gain[..., None] * self.left.mT)

    def _rework(self, tol: float) -> None:
        """Replace W by an accurate Vᵀ for the images whose W is ill conditioned."""
        if self.large.dtype == torch.float64:
            return
        s = self.values
        poor = ((s > 0) & (s < _WELL_CONDITIONED * s.amax(-1, keepdim=True))).any(-1)
        if not poor.any():
            return
        exact = self.large[poor].double()
        s, left, to_z = _decompose(torch.bmm(exact, exact.mT), tol)
        right = torch.bmm(to_z, exact)
        self.large = self.large.index_put((poor.nonzero()[:, 0],), right.to(self.large))
        self.values, self.left = self.values.clone(), self.left.clone()
        self.values[poor], self.left[poor] = s, left
        self.to_z[poor] = torch.diag_embed((s > 0).to(s))
        self.to_y[poor] = left * s[:, None]


def _gram(matrix: Tensor, present: Tensor) -> Tensor:
    """WWᵀ of `[B, M, N]` matrices in their own precision, as float64 `[B, M, M]`."""
    if matrix.device.type != "cpu":
        return torch.bmm(matrix, matrix.mT).double()
    gram = matrix.new_zeros(len(matrix), matrix.shape[1], matrix.shape[1])
    # The rows that exist are usually the first ones. A CPU leaves out those after the last of them.
    counts = (present * torch.arange(1, present.shape[1] + 1)).amax(-1).tolist()
    for full, part, count in zip(matrix, gram, counts, strict=True):
        part[:count, :count] = full[:count] @ full[:count].mT
    return gram.double()


def _decompose(gram: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """s `[B, M]`, U and diag(1/s) Uᵀ `[B, M, M]` of Gram matrices; a dropped direction is 0."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # LAPACK on small matrices is ten times faster so than on two
    try:
        squares, U = torch.linalg.eigh(gram)
    finally:
        torch.set_num_threads(threads)
    s = squares.clamp(min=0).sqrt()
    s = s * (s > tol * s.amax(-1, keepdim=True))
    U = U * (s > 0)[:, None]
    return s, U, (U * (1 / torch.where(s > 0, s, 1))[:, None]).mT
