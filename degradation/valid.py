"""Blur without wrap-around: only the samples that see pixels of the image alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation.base import Diagonalisable, LinearOperator, by_channel, full_precision
from degradation.convolution import StridedConvolution, check_blur
from degradation.iterative import Iterative
from degradation.matrix import DenseMatrix

MAX_ROWS = 4096
MAX_BYTES = 2**30  # of the matrix, in the float64 that it is factorised in
_NOTHING = 1e-6  # of the largest value of a kernel: float32 sums hardly see what is smaller


@dataclass(frozen=True)
class _Axis:
    """Valid samples along one axis: `first` + i sees the `length` pixels from `start` + s·i on."""

    first: int
    count: int
    start: int
    length: int

    def pixels(self, stride: int) -> Tensor:
        """The pixels that each valid sample sees, `[count, length]`."""
        return (self.start + stride * torch.arange(self.count))[:, None] + torch.arange(self.length)


@dataclass(frozen=True)
class _Geometry:
    """Which samples of the coarse grid (h/s, w/s) depend on nothing outside the image."""

    stride: int
    coarse: tuple[int, int]
    rows: _Axis
    columns: _Axis

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of valid rows and columns."""
        return self.rows.count, self.columns.count

    def valid(self, picture: Tensor) -> Tensor:
        """The valid samples `[..., r, c]` of pictures on the coarse grid `[..., h/s, w/s]`."""
        rows, columns = self.rows, self.columns
        return picture.narrow(-2, rows.first, rows.count).narrow(-1, columns.first, columns.count)

    def spread(self, samples: Tensor) -> Tensor:
        """Transpose of `valid`: zeros where a sample is not valid."""
        above, left = self.rows.first, self.columns.first
        below = self.coarse[0] - above - self.rows.count
        right = self.coarse[1] - left - self.columns.count
        return F.pad(samples, (left, right, above, below))


def _placed(kernel: Tensor, stride: int, size: tuple[int, int]) -> tuple[Tensor, _Geometry]:
    """The support of kernels `[B, kh, kw]`, turned by half a turn: the weights of a correlation.

    The centre is at (kh // 2, kw // 2), the support common to the batch. Raises ValueError.
    """
    h, w = size
    check_blur(kernel, stride, size)
    if not kernel.isfinite().all() or not kernel.any():
        raise ValueError("a kernel must hold finite numbers that are not all zero")
    seen = (kernel.abs() > _NOTHING * kernel.abs().amax((1, 2), keepdim=True)).any(0)
    axes, support = [], []
    for n, line in ((h, seen.any(1)), (w, seen.any(0))):
        inside = line.nonzero()[:, 0]
        low, high = int(inside[0]), int(inside[-1]) + 1
        support.append(slice(low, high))
        axes.append(_axis(n, stride, high - len(line) // 2, high - low))
    if not all(axis.count for axis in axes):
        sides = "×".join(str(axis.length) for axis in axes)
        raise ValueError(
            f"blur over {sides} pixels leaves no sample inside {h}×{w} pixels: take a smaller "
            "kernel or stride, or a network of larger images"
        )
    weights = kernel[:, support[0], support[1]].flip((1, 2))
    return weights, _Geometry(stride, (h // stride, w // stride), *axes)


def _axis(n: int, stride: int, reach: int, length: int) -> _Axis:
    """Of the n / s samples, number i sees `length` pixels from s·i − reach + 1 on."""
    first = max(0, -((1 - reach) // stride))
    last = min(n // stride - 1, (n - length + reach - 1) // stride)
    return _Axis(first, max(0, last - first + 1), stride * first - reach + 1, length)


def _matrix(weights: Tensor, geometry: _Geometry, size: tuple[int, int]) -> Tensor:
    """The operator on one channel as dense matrices `[B, r·c, h·w]`."""
    down, across = (axis.pixels(geometry.stride) for axis in (geometry.rows, geometry.columns))
    pixel = down[:, None, :, None] * size[1] + across[None, :, None, :]  # [r, c, kh, kw]
    pixel = pixel.flatten(2).flatten(0, 1).to(weights.device)
    matrix = weights.new_zeros(len(weights), len(pixel), size[0] * size[1])
    values = weights.flatten(1)[:, None].expand(-1, len(pixel), -1)
    return matrix.scatter_(2, pixel.expand(len(weights), -1, -1), values)


class _Valid(LinearOperator):
    """What both forms share: y has the form of a whole blurred picture, M = C·(h/s)·(w/s) as in
    `StridedConvolution`, and the samples that are not valid do not exist."""

    geometry: _Geometry

    @property
    def rows(self) -> Tensor:
        device = getattr(self, self.tensors[0]).device
        ones = torch.ones(len(self), self.image_shape[0], *self.geometry.grid, device=device)
        return self.geometry.spread(ones).flatten(1) > 0

    def measurement_image(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.image_shape[0], *self.geometry.coarse))


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

    def __init__(
        self,
        kernel: Tensor,
        stride: int,
        image_shape: tuple[int, int, int],
        tol: float = 0.02,
    ):
        self.image_shape = image_shape
        h, w = image_shape[1:]
        weights, self.geometry = _placed(full_precision(kernel), stride, (h, w))
        count = self.geometry.rows.count * self.geometry.columns.count
        if count > MAX_ROWS or len(kernel) * count * h * w * 8 > MAX_BYTES:
            raise ValueError(
                f"blur with stride {stride} has {count} samples inside {h}×{w} pixels, too many "
                f"for an exact matrix (at most {MAX_ROWS}, and 1 GiB)"
            )
        dense = DenseMatrix(_matrix(weights, self.geometry, (h, w)), (1, h, w), tol, copy=False)
        with torch.autocast(weights.device.type, enabled=False):
            self.right = dense.to_z @ dense.large  # Vᵀ [B, R, h·w]
        self.left = dense.left  # U [B, R, R]
        self.values = dense.values  # [B, R]

    @property
    def s(self) -> Tensor:
        return self.values.repeat(1, self.image_shape[0])

    def Vt(self, x: Tensor) -> Tensor:
        self.check_shape(x)
        return by_channel(self.right, full_precision(x).flatten(-2)).flatten(-2)

    def V(self, z: Tensor) -> Tensor:
        return self.unflatten(by_channel(self.right.mT, self._channels(z)).flatten(-2))

    def Ut(self, y: Tensor) -> Tensor:
        samples = self.geometry.valid(self.measurement_image(full_precision(y)))
        return by_channel(self.left.mT, samples.flatten(-2)).flatten(-2)

    def U(self, z: Tensor) -> Tensor:
        samples = by_channel(self.left, self._channels(z)).flatten(-2)
        grid = (self.image_shape[0], *self.geometry.grid)
        return self.geometry.spread(samples.unflatten(-1, grid)).flatten(-3)

    def _channels(self, z: Tensor) -> Tensor:
        """Vectors `[B, (K,) C·m]` of a value for each channel as `[B, (K,) C, m]`."""
        return full_precision(z).unflatten(-1, (self.image_shape[0], -1))


class ValidRegion(_Valid, Iterative):
    """The same measurement of an image of any size, without an SVD: H† by conjugate gradients.

    kernel, stride and the form of y as in `ValidConvolution`, with nothing dropped; tol, max_iter
    and floor as in `Iterative`.
    """

    tensors = ("norm",)
    circle: StridedConvolution

    def __init__(
        self,
        kernel: Tensor,
        stride: int,
        image_shape: tuple[int, int, int],
        tol: float = 1e-6,
        max_iter: int = 500,
        floor: float = 1e-3,
    ):
        self.image_shape = image_shape
        self.tol, self.max_iter, self.floor = tol, max_iter, floor
        weights, self.geometry = _placed(full_precision(kernel), stride, image_shape[1:])
        # Circular, by fast Fourier transforms: the valid samples are those that do not wrap.
        self.circle = StridedConvolution(weights.flip((1, 2)), stride, image_shape, tol=0.0)
        self.norm = self.circle.values.amax((1, 2))
        # The support may lie off the centre of the kernel; in `circle` it is centred.
        self.shift = tuple(
            axis.length // 2 - (axis.start + axis.length - 1 - stride * axis.first)
            for axis in (self.geometry.rows, self.geometry.columns)
        )

    def _measure(self, x: Tensor) -> Tensor:
        y = self.measurement_image(self.circle.H(x.roll(self.shift, (-2, -1))))
        return self.geometry.spread(self.geometry.valid(y)).flatten(-3)

    def _spread(self, y: Tensor) -> Tensor:
        samples = self.geometry.valid(self.measurement_image(y))
        back = self.circle.H_adjoint(self.geometry.spread(samples).flatten(-3))
        return back.roll([-pixels for pixels in self.shift], (-2, -1))

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        other = super()._map(fn)
        other.circle = self.circle._map(fn)
        return other
