"""Blur without wrap-around: only the samples that see pixels of the image alone."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation.base import Diagonalisable, LinearOperator, Shape, by_channel, full_precision
from degradation.convolution import StridedConvolution, check_blur
from degradation.iterative import Iterative
from degradation.matrix import DenseMatrix

MAX_ROWS = 4096
MAX_BYTES = 2**30  # of the matrix, in the float64 that it is factorised in
_NOTHING = 1e-6  # of the largest value of a kernel: float32 sums hardly see what is smaller


class _Axis(NamedTuple):
    """Valid samples along one axis: `first` + i sees the `length` pixels from `start` + s·i on."""

    first: int
    number: int
    start: int
    length: int


def _axis(n: int, stride: int, seen: Tensor) -> tuple[_Axis, slice]:
    """The valid ones of n / s samples, and the support of a kernel: where `seen` is True.

    Sample number i sees the pixels from s·i − reach + 1 on.
    """
    inside = seen.nonzero()[:, 0]
    low, high = int(inside[0]), int(inside[-1]) + 1
    reach, length = high - len(seen) // 2, high - low
    first = max(0, -((1 - reach) // stride))
    last = min(n // stride - 1, (n - length + reach - 1) // stride)
    axis = _Axis(first, max(0, last - first + 1), stride * first - reach + 1, length)
    return axis, slice(low, high)


class _Valid(LinearOperator):
    """What both forms share: y has the form of a whole blurred picture, M = C·(h/s)·(w/s) as in
    `StridedConvolution`, and the samples that are not valid do not exist."""

    stride: int
    coarse: tuple[int, int]
    axes: tuple[_Axis, _Axis]

    def _place(self, kernel: Tensor, stride: int, image_shape: Shape) -> Tensor:
        """The support of kernels `[B, kh, kw]`, turned by half a turn: the weights of a
        correlation. The centre is at (kh // 2, kw // 2), the support common to the batch.

        Finds which samples of the coarse grid (h/s, w/s) depend on nothing outside the image.
        Raises ValueError if there is none.
        """
        self.image_shape, self.stride = image_shape, stride
        h, w = image_shape[1:]
        check_blur(kernel, stride, (h, w))
        if not kernel.isfinite().all() or not kernel.any():
            raise ValueError("a kernel must hold finite numbers that are not all zero")
        kernel = full_precision(kernel)
        seen = (kernel.abs() > _NOTHING * kernel.abs().amax((1, 2), keepdim=True)).any(0)
        rows, down = _axis(h, stride, seen.any(1))
        columns, across = _axis(w, stride, seen.any(0))
        if not rows.number or not columns.number:
            raise ValueError(
                f"blur over {rows.length}×{columns.length} pixels leaves no sample inside {h}×{w} "
                "pixels: take a smaller kernel or stride, or a network of larger images"
            )
        self.coarse, self.axes = (h // stride, w // stride), (rows, columns)
        return kernel[:, down, across].flip((1, 2))

    def _picked(self, picture: Tensor) -> Tensor:
        """The valid samples `[..., r, c]` of pictures on the coarse grid `[..., h/s, w/s]`."""
        rows, columns = self.axes
        return picture.narrow(-2, rows.first, rows.number).narrow(-1, columns.first, columns.number)

    def _padded(self, samples: Tensor) -> Tensor:
        """Transpose of `_picked`: zeros where a sample is not valid."""
        (above, r, *_), (left, c, *_) = self.axes
        return F.pad(samples, (left, self.coarse[1] - left - c, above, self.coarse[0] - above - r))

    @property
    def rows(self) -> Tensor:
        device = getattr(self, self.tensors[0]).device
        grid = [axis.number for axis in self.axes]
        ones = torch.ones(len(self), self.image_shape[0], *grid, device=device)
        return self._padded(ones).flatten(1) > 0

    def measurement_image(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.image_shape[0], *self.coarse))


class ValidConvolution(_Valid, Diagonalisable):
    """y = (k ∗ x)[::s, ::s] without wrap-around, with its SVD, for small images.

    kernel: `[B, kh, kw]`, centre at (kh // 2, kw // 2); its borders of zeros do not count. The
    matrix of one channel is factorised (`DenseMatrix`), and the channels are a stack that shares
    it. Singular values below `tol` times the largest are dropped, from H too, as in
    `StridedConvolution`.

    Raises ValueError if no sample is valid, for a stride that does not divide both sides, and
    where the matrix would have more than 4096 rows or take more than 1 GiB.
    """

    tensors = ("right", "left", "values")

    def __init__(self, kernel: Tensor, stride: int, image_shape: Shape, tol: float = 0.02):
        weights = self._place(kernel, stride, image_shape)
        h, w = image_shape[1:]
        count = self.axes[0].number * self.axes[1].number
        if count > MAX_ROWS or len(kernel) * count * h * w * 8 > MAX_BYTES:
            raise ValueError(
                f"blur with stride {stride} has {count} samples inside {h}×{w} pixels, too many "
                f"for an exact matrix (at most {MAX_ROWS}, and 1 GiB)"
            )
        dense = DenseMatrix(self._matrix(weights), (1, h, w), tol, copy=False)
        with torch.autocast(weights.device.type, enabled=False):
            self.right = dense.to_z @ dense.large  # Vᵀ [B, R, h·w]
        self.left = dense.left  # U [B, R, R]
        self.values = dense.values  # [B, R]

    def _matrix(self, weights: Tensor) -> Tensor:
        """The operator on one channel as dense matrices `[B, r·c, h·w]`."""
        (_, r, top, kh), (_, c, left, kw) = self.axes
        h, w = self.image_shape[1:]
        pixels = torch.arange(h * w, device=weights.device).view(h, w)[top:, left:]
        seen = pixels.unfold(0, kh, self.stride).unfold(1, kw, self.stride)[:r, :c]
        index = seen.reshape(r * c, kh * kw).expand(len(weights), -1, -1)
        matrix = weights.new_zeros(len(weights), r * c, h * w)
        return matrix.scatter_(2, index, weights.flatten(1)[:, None].expand_as(index))

    @property
    def s(self) -> Tensor:
        return self.values.repeat(1, self.image_shape[0])

    def Vt(self, x: Tensor) -> Tensor:
        return by_channel(self.right, self.checked(x).flatten(-2)).flatten(-2)

    def V(self, z: Tensor) -> Tensor:
        return self.unflatten(by_channel(self.right.mT, self.planes(z)).flatten(-2))

    def Ut(self, y: Tensor) -> Tensor:
        samples = self._picked(self.measurement_image(full_precision(y)))
        return by_channel(self.left.mT, samples.flatten(-2)).flatten(-2)

    def U(self, z: Tensor) -> Tensor:
        samples = by_channel(self.left, self.planes(z))
        return self._padded(samples.unflatten(-1, (-1, self.axes[1].number))).flatten(-3)


class ValidRegion(_Valid, Iterative):
    """The same measurement of an image of any size, without an SVD: H† by conjugate gradients.

    kernel, stride and the form of y as in `ValidConvolution`, with nothing dropped; tol, max_iter
    and floor as in `Iterative`.
    """

    tensors = ("norm",)
    operators = ("circle",)

    def __init__(
        self,
        kernel: Tensor,
        stride: int,
        image_shape: Shape,
        tol: float = 1e-6,
        max_iter: int = 500,
        floor: float = 1e-3,
    ):
        self.tol, self.max_iter, self.floor = tol, max_iter, floor
        weights = self._place(kernel, stride, image_shape)
        # Circular, by fast Fourier transforms: the valid samples are those that do not wrap.
        self.circle = StridedConvolution(weights.flip((1, 2)), stride, image_shape, tol=0.0)
        self.norm = self.circle.values.amax((1, 2))
        # The support may lie off the centre of the kernel; in `circle` it is centred.
        self.shift = tuple(
            axis.length // 2 - (axis.start + axis.length - 1 - stride * axis.first)
            for axis in self.axes
        )

    def _measure(self, x: Tensor) -> Tensor:
        y = self.measurement_image(self.circle.H(x.roll(self.shift, (-2, -1))))
        return self._padded(self._picked(y)).flatten(-3)

    def _spread(self, y: Tensor) -> Tensor:
        samples = self._padded(self._picked(self.measurement_image(y)))
        back = self.circle.H_adjoint(samples.flatten(-3))
        return back.roll([-pixels for pixels in self.shift], (-2, -1))
