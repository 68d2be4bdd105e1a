"""Operators in the plainest form: what the fast ones are compared with, in results and in time.

A blur is complex transforms of every channel on a doubled, zero-padded grid, its measurement the
real and imaginary parts of the sub-sampled spectrum. A matrix stands beside its pseudo-inverse,
made by a float64 SVD. A mask is as large as the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainBlur:
    """kernel `[B, kh, kw]` with its centre at (kh // 2, kw // 2); images `[B, K, C, h, w]`."""

    def __init__(self, kernel: Tensor, stride: int, image_shape: tuple[int, int, int]):
        self.image_shape, self.stride = image_shape, stride
        h, w = 2 * image_shape[1], 2 * image_shape[2]
        kh, kw = kernel.shape[1:]
        padded = F.pad(kernel, (0, w - kw, 0, h - kh)).roll((-(kh // 2), -(kw // 2)), (1, 2))
        self.spectrum = torch.fft.fft2(padded)[:, None, None]
        power = self._fold(self.spectrum.abs().square())
        self.inverse = torch.where(power > 1e-12 * power.amax(), 1 / power, 0)

    def H(self, x: Tensor) -> Tensor:
        """To `[B, K, C·(2h/s)·(2w/s)·2]`."""
        h, w = x.shape[-2:]
        spectrum = torch.fft.fft2(F.pad(x, (0, w, 0, h)).to(torch.complex64))
        return torch.view_as_real(self._fold(self.spectrum * spectrum)).flatten(2)

    def H_pinv(self, y: Tensor) -> Tensor:
        """Back, by the pseudo-inverse on the doubled grid and a crop."""
        channels, h, w = self.image_shape
        s = self.stride
        shape = channels, 2 * h // s, 2 * w // s, 2
        coarse = torch.view_as_complex(y.unflatten(-1, shape).contiguous()) * self.inverse
        spectrum = self.spectrum.conj() * coarse.repeat(1, 1, 1, s, s)
        return torch.fft.ifft2(spectrum).real[..., :h, :w]

    def _fold(self, spectrum: Tensor) -> Tensor:
        """Mean over the frequencies that sub-sampling cannot tell apart."""
        s = self.stride
        return spectrum.unflatten(-1, (s, -1)).unflatten(-3, (s, -1)).mean((-4, -2))


class PlainMatrix:
    """matrix `[B, M, C·h·w]`, a row of zeros does not exist."""

    def __init__(self, matrix: Tensor, image_shape: tuple[int, int, int]):
        self.image_shape = image_shape
        self.matrix = matrix
        self.pinv = torch.linalg.pinv(matrix.double()).to(matrix.dtype)

    def H(self, x: Tensor) -> Tensor:
        """Images `[B, K, C, h, w]` to `[B, K, M]`."""
        return x.flatten(2) @ self.matrix.mT

    def H_pinv(self, y: Tensor) -> Tensor:
        """Back."""
        return (y @ self.pinv.mT).unflatten(-1, self.image_shape)


class PlainMask:
    """mask `[B, 1, h, w]`, 1 = visible."""

    def __init__(self, mask: Tensor, image_shape: tuple[int, int, int]):
        self.image_shape = image_shape
        self.mask = mask.expand(-1, *image_shape).reshape(len(mask), 1, math.prod(image_shape))

    def H(self, x: Tensor) -> Tensor:
        """Images `[B, K, C, h, w]` to `[B, K, C·h·w]`."""
        return x.flatten(2) * self.mask

    def H_pinv(self, y: Tensor) -> Tensor:
        """Back."""
        return (y * self.mask).unflatten(-1, self.image_shape)
