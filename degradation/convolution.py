"""Strided circular convolution: blur and sub-sampling, as a camera would measure it."""

import torch
from torch import Tensor

from degradation.base import (
    Diagonalisable,
    Shape,
    by_channel,
    full_precision,
    per_image,
    regularised_gain,
    scaled,
)

# Up to this many samples a plane H is a matrix: a product with it beats the fast transforms.
_SMALL = 64
_LARGEST = 2**20  # values of such a matrix: 4 MiB an image, and as much for its orthonormal rows


class StridedConvolution(Diagonalisable):
    """y = (k ∗ x)[::s, ::s], circular, measured in the pixel domain; M = C·(h/s)·(w/s).

    kernel: `[B, kh, kw]`, no larger than the image, centre at index (kh // 2, kw // 2); the
    sampling phase is 0. stride must divide both sides of the image. Singular values below `tol`
    times the largest are dropped, from H too.

    With the polyphase components x_ab = x[a::s, b::s] and k_ab[p, q] = k[s·p − a, s·q − b], the
    measurement is Σ k_ab ∗ x_ab on the coarse grid: s² small real FFTs and a sum. HHᵀ is the
    convolution with spectrum G = Σ |K_ab|², and s = √G in the real orthonormal Hartley coordinates
    of the coarse grid. Where that grid is small, products with two matrices are faster: the rows of
    H for one colour, and N = (HHᵀ)^-½·H, with which H† = Nᵀ·(HHᵀ)^-½ divides by s once.
    """

    def __init__(self, kernel: Tensor, stride: int, image_shape: Shape, tol: float = 0.02):
        self.image_shape = image_shape
        h, w = image_shape[1:]
        check_blur(kernel, stride, (h, w))
        kh, kw = kernel.shape[1:]
        if kh > h or kw > w:
            raise ValueError(
                f"a kernel of {kh}×{kw} pixels is larger than an image of {h}×{w}: take a smaller "
                "kernel, or larger images"
            )
        self.stride, self.coarse = stride, (h // stride, w // stride)
        padded = torch.nn.functional.pad(kernel.double(), (0, w - kw, 0, h - kh))
        centred = padded.roll((-(kh // 2), -(kw // 2)), (-2, -1))  # the centre at (0, 0)
        phases = polyphase(_reflect(centred), stride)
        spectrum = torch.fft.fft2(phases).conj()  # K_ab [B, s², h/s, w/s], on the full coarse grid
        power = spectrum.abs().square().sum(1)
        values = ((power + _reflect(power)) / 2).sqrt()  # symmetric, so pairs ±f stay together
        values = values * (values > tol * values.amax((-2, -1), keepdim=True))
        half = self.coarse[1] // 2 + 1
        spectrum = (spectrum * (values > 0)[:, None])[..., :half]
        precision = full_precision(kernel)
        self.values = values.to(precision)  # [B, h/s, w/s]
        samples = self.coarse[0] * self.coarse[1]
        self.small = samples <= _SMALL and samples * h * w <= _LARGEST
        if self.small:
            scale = torch.where(values > 0, values, 1)[:, None, :, :half]
            self.matrix = self._rows(spectrum).to(precision)  # [B, h/s·w/s, h·w]
            self.normal = self._rows(spectrum / scale).to(precision)  # of the same shape
            self.tensors = ("matrix", "normal", "values")
        else:
            self.spectrum = torch.view_as_real(spectrum).to(precision)  # [B, s², h/s, w/(2s)+1, 2]
            self.tensors = ("spectrum", "values")

    # ---- direct forms -------------------------------------------------------------------------

    def H(self, x: Tensor) -> Tensor:
        x = self.checked(x)
        if self.small:
            return by_channel(self.matrix, x.flatten(-2)).flatten(-2)
        return self.measure_phases(polyphase(x, self.stride))

    def H_adjoint(self, y: Tensor) -> Tensor:
        if self.small:
            return self._spread(self.matrix, self.planes(y))
        return merge_phases(self.phases_pinv(y, None), self.stride)

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        if self.small:
            seen = by_channel(self.gain_matrix(noise_level), self.planes(y))
            return self._spread(self.normal, seen)
        return merge_phases(self.phases_pinv(y, self.inverse(noise_level)), self.stride)

    @property
    def rows(self) -> Tensor:
        return torch.ones_like(self.s, dtype=torch.bool)

    def measurement_image(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.image_shape[0], *self.coarse))

    # ---- the SVD in Hartley coordinates -------------------------------------------------------

    @property
    def s(self) -> Tensor:
        return self.values.flatten(1).repeat(1, self.image_shape[0])

    def Vt(self, x: Tensor) -> Tensor:
        if self.small:
            seen = by_channel(self.normal, self.checked(x).flatten(-2))
            return self._kept(self._hartley(seen.flatten(-2)))
        return self._times(self._hartley(self.H(x)), regularised_gain(self.values, 0.0))

    def V(self, z: Tensor) -> Tensor:
        if self.small:
            return self._spread(self.normal, self.planes(self._hartley(self._kept(z))))
        divided = self._times(z, regularised_gain(self.values, 0.0))  # z / s, 0 where s = 0
        return self.H_adjoint(self._hartley(divided))

    def Ut(self, y: Tensor) -> Tensor:
        return self._kept(self._hartley(y))

    def U(self, z: Tensor) -> Tensor:
        return self._hartley(self._kept(z))

    def _hartley(self, y: Tensor) -> Tensor:
        """Re F − Im F of the orthonormal transform: real, symmetric and its own inverse."""
        spectrum = torch.fft.fft2(self.measurement_image(full_precision(y)), norm="ortho")
        return (spectrum.real - spectrum.imag).flatten(-3)

    def _kept(self, z: Tensor) -> Tensor:
        return self._times(z, self.values > 0)

    def _times(self, z: Tensor, factors: Tensor) -> Tensor:
        """Spectral coordinates of every colour times the same factors `[B, h/s, w/s]`."""
        return scaled(self.planes(z), factors.flatten(1)[:, None]).flatten(-2)

    # ---- the coarse grid ----------------------------------------------------------------------

    def measure_phases(self, phases: Tensor) -> Tensor:
        """Hx of polyphase components `[B, (K,) C, s², h/s, w/s]`."""
        spectra = torch.fft.rfft2(phases)
        coarse = (self._kernel(spectra) * spectra).sum(-3)
        return torch.fft.irfft2(coarse, s=self.coarse).flatten(-3)

    def phases_pinv(self, y: Tensor, inverse: Tensor | None) -> Tensor:
        """The polyphase components of Hᵀ(HHᵀ + σ²I)⁻¹y, `inverse` the spectrum of the inverse;
        without it those of Hᵀy."""
        coarse = torch.fft.rfft2(self.planes(y).unflatten(-1, self.coarse))
        if inverse is not None:
            coarse = scaled(coarse, inverse[:, None, :, : coarse.shape[-1]])
        coarse = coarse.unsqueeze(-3)
        return torch.fft.irfft2(self._kernel(coarse).conj() * coarse, s=self.coarse)

    def _spread(self, rows: Tensor, planes: Tensor) -> Tensor:
        """Transposed rows of each colour times what it has of them, as images."""
        return by_channel(rows.mT, planes).unflatten(-1, self.image_shape[1:])

    def _kernel(self, like: Tensor) -> Tensor:
        """K_ab, broadcast over the channels: `[B, (1,) 1, s², h/s, w/(2s)+1]` complex."""
        return per_image(torch.view_as_complex(self.spectrum).unsqueeze(1), like)

    def gain_matrix(self, noise_level: float | Tensor) -> Tensor:
        """(HHᵀ)^½·(HHᵀ + σ²I)⁻¹ of one colour, `[B, n, n]`: with Nᵀ before it H†."""
        gain = regularised_gain(self.values, noise_level)[..., : self.coarse[1] // 2 + 1]
        return _circulant(torch.fft.irfft2(gain, s=self.coarse))

    def inverse(self, noise_level: float | Tensor) -> Tensor:
        """Spectrum of (HHᵀ + σ²I)⁻¹ where H is not zero, `[B, h/s, w/s]`."""
        safe = torch.where(self.values > 0, self.values, 1)
        return regularised_gain(self.values, noise_level) / safe

    def _rows(self, spectrum: Tensor) -> Tensor:
        """The matrix `[B, h/s·w/s, h·w]` of one colour from the spectra K_ab."""
        h, w = self.coarse
        rows = _circulant(torch.fft.irfft2(spectrum, s=self.coarse))  # [B, s², n, n]
        rows = rows.unflatten(-1, (h, w)).unflatten(1, (self.stride, self.stride))
        return rows.permute(0, 3, 4, 1, 5, 2).flatten(2)


def check_blur(kernel: Tensor, stride: int, size: tuple[int, int]) -> None:
    """Raise ValueError for a stride that does not divide both sides, and for no `[B, kh, kw]`."""
    h, w = size
    if stride < 1 or h % stride or w % stride:
        raise ValueError(f"stride {stride} does not divide both sides of an image of {h}×{w}")
    if kernel.ndim != 3:
        raise ValueError(f"kernels must be [B, kh, kw], not {tuple(kernel.shape)}")


def _circulant(kernel: Tensor) -> Tensor:
    """Matrices `[..., n, n]` with entry (m, q) = kernel[m − q], circular kernels `[..., h, w]`."""
    axes = (torch.arange(n, device=kernel.device) for n in kernel.shape[-2:])
    rows, columns = ((axis[:, None] - axis) % len(axis) for axis in axes)
    matrix = kernel[..., rows[:, None, :, None], columns[None, :, None, :]]
    return matrix.flatten(-2).flatten(-3, -2)


def polyphase(x: Tensor, stride: int) -> Tensor:
    """`[..., h, w]` to the s² components `[..., s², h/s, w/s]`, x_ab = x[a::s, b::s]."""
    x = x.unflatten(-1, (-1, stride)).unflatten(-3, (-1, stride))  # h/s s w/s s
    return x.movedim((-3, -1), (-4, -3)).flatten(-4, -3)


def merge_phases(x: Tensor, stride: int) -> Tensor:
    """Inverse of `polyphase`: `[..., s², h/s, w/s]` to `[..., h, w]`."""
    x = x.unflatten(-3, (stride, stride)).movedim((-4, -3), (-3, -1))
    return x.flatten(-4, -3).flatten(-2, -1)


def _reflect(x: Tensor) -> Tensor:
    """x[−i, −j] on the circular grid; on a spectrum, f → −f."""
    return x.flip((-2, -1)).roll((1, 1), (-2, -1))
