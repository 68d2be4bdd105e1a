"""Families of strided convolutions: blur and super-resolution (paper, A.3.2, and common others)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from degradation.base import Device, Shape
from degradation.convolution import StridedConvolution
from degradation.family import Family, check_span, choice, uniform_between
from degradation.motion import motion_kernels
from degradation.randomness import Draws


@dataclass(frozen=True, eq=False)
class Blur(Family):
    """Convolutions with kernels that `kernels` draws; the stride is the structure."""

    def structure(self, seed: int) -> int:
        return choice(seed, "stride", self.structures())

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def sample(
        self, image_shape: Shape, structure: int, seeds: Sequence[int], device: Device = "cpu"
    ) -> StridedConvolution:
        kernel = self.kernels(image_shape, structure, seeds).to(device, non_blocking=True)
        operator = StridedConvolution(kernel, structure, image_shape)
        return operator if len(operator) == len(seeds) else operator.expand(len(seeds))


@dataclass(frozen=True)
class _Strided(Blur):
    """With one of several strides, uniformly."""

    strides: tuple[int, ...] = (2, 4, 8)

    def __post_init__(self) -> None:
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides must be whole numbers of at least 1, not {self.strides}")

    def structures(self) -> tuple[int, ...]:
        return self.strides


@dataclass(frozen=True)
class MotionBlur(_Strided):
    """Strided motion blur (A.3.2): a random path of the hand, smoothed by a Gaussian of the stride.

    Kernels have half the size of the image and sum to 1.
    """

    grows: ClassVar[bool] = True

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        _, h, w = image_shape
        return motion_kernels(Draws(seeds), (h // 2, w // 2), smooth=structure)


@dataclass(frozen=True)
class SRConv(_Strided):
    """Strided convolution with a white Gaussian kernel of side 2·stride.

    The kernel is normalised by the sum of its magnitudes: its plain sum can be near zero.
    """

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        kernel = Draws(seeds).normal((2 * structure, 2 * structure), "kernel")
        return kernel / kernel.abs().sum((-2, -1), keepdim=True)


@dataclass(frozen=True)
class AveragePool(_Strided):
    """Super-resolution from the means of blocks of stride×stride pixels."""

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        offsets = torch.arange(structure)
        taps = torch.full((1, structure), 1 / structure)
        return _separable(offsets, taps, image_shape)


@dataclass(frozen=True)
class Bicubic(_Strided):
    """Super-resolution from bicubic down-sampling without aliases, as image libraries do it.

    The cubic of Keys (1981) with a = −1/2, stretched by the stride s to 4·s taps and normalised,
    is centred on each block of s×s pixels, half a pixel off the grid where s is even. The image
    goes on circularly beyond its border.
    """

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        offsets = torch.arange(-2 * structure, 3 * structure)
        taps = _cubic((offsets - (structure - 1) / 2) / structure)[None]
        return _separable(offsets, taps / taps.sum(), image_shape)


@dataclass(frozen=True)
class GaussianBlur(_Strided):
    """Blur with a Gaussian of standard deviation `sigma`, in pixels, cut off at four of them.

    sigma: one number, or two that it is uniform between.
    """

    strides: tuple[int, ...] = (1,)
    sigma: tuple[float, ...] = (1.0, 4.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span("sigma", self.sigma, "in (0, 100]", all(0 < s <= 100 for s in self.sigma))

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        sigma = uniform_between(Draws(seeds), self.sigma, "sigma")[:, None]
        reach = math.ceil(4 * self.sigma[-1])
        offsets = torch.arange(-reach, reach + 1)
        taps = (-0.5 * (offsets / sigma).square()).exp() * (offsets.abs() <= (4 * sigma).ceil())
        return _separable(offsets, taps / taps.sum(1, keepdim=True), image_shape)


@dataclass(frozen=True)
class UniformBlur(_Strided):
    """Blur with the mean of a square of odd side, one of `sides`, uniformly."""

    strides: tuple[int, ...] = (1,)
    sides: tuple[int, ...] = (3, 5, 7, 9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sides or any(side < 1 or side % 2 == 0 for side in self.sides):
            raise ValueError(f"sides must be odd numbers of at least 1, not {self.sides}")

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        (_, h, w), largest = image_shape, max(self.sides)
        if largest > min(h, w):
            raise ValueError(f"sides must be at most those of an image of {h}×{w}, not {largest}")
        picked = Draws(seeds).integers(0, len(self.sides) - 1, (1,), "side")
        side = torch.tensor(self.sides)[picked]
        offsets = torch.arange(-(largest // 2), largest // 2 + 1)
        return _separable(offsets, (offsets.abs() <= side // 2) / side, image_shape)


@dataclass(frozen=True, eq=False)
class FixedKernel(Blur):
    """One given kernel `[kh, kw]` and stride for every image; centre at (kh // 2, kw // 2)."""

    kernel: Tensor
    stride: int = 1

    def __post_init__(self) -> None:
        kernel = self.kernel
        if kernel.ndim != 2 or not kernel.isfinite().all() or not kernel.any():
            wanted = "[kh, kw] finite numbers that are not all zero"
            raise ValueError(f"kernel must be {wanted}, not of shape {list(kernel.shape)}")
        if self.stride < 1:
            raise ValueError(f"stride must be a whole number of at least 1, not {self.stride}")

    def structures(self) -> tuple[int, ...]:
        return (self.stride,)

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        return self.kernel[None]


def _separable(offsets: Tensor, taps: Tensor, image_shape: Shape) -> Tensor:
    """Kernels `[B, h, w]`, the image's size, of a sample that sees pixel s·i + offsets[t] of an
    axis with weight taps[:, t]; what is longer than the image goes round its circle."""
    rows, columns = (  # a kernel runs against the offsets, from n // 2
        torch.zeros(len(taps), n).index_add(1, (n // 2 - offsets) % n, taps)
        for n in image_shape[1:]
    )
    return rows[:, :, None] * columns[:, None, :]


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = −1/2 (Keys 1981, Eq. 15)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))
