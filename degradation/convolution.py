"""Strided circular convolution: blur and sub-sampling, as a camera would measure it."""

import torch
from torch import Tensor

from degradation.base import Degradation, full_precision, per_image, regularised_gain
from degradation.fourier import irfft2, rfft2


class StridedConvolution(Degradation):
    """y = (k ∗ x)[::s, ::s], circular, measured in the pixel domain; M = C·(h/s)·(w/s).

    kernel: `[B, kh, kw]`, no larger than the image, centre at index (kh // 2, kw // 2); the
    sampling phase is 0. stride must divide both sides of the image. Singular values below `tol`
    times the largest are dropped, from H too.

    With the polyphase components x_ab = x[a::s, b::s] and k_ab[p, q] = k[s·p − a, s·q − b], the
    measurement is Σ k_ab ∗ x_ab on the coarse grid, so everything is s² small real FFTs and a sum.
    HHᵀ is the convolution with spectrum G = Σ |K_ab|²; s = √G in the real orthonormal Hartley
    coordinates of the coarse grid.
    """

    tensors = ("spectrum", "values")

    def __init__(
        self,
        kernel: Tensor,
        stride: int,
        image_shape: tuple[int, int, int],
        tol: float = 0.02,
    ):
        self.image_shape = image_shape
        h, w = image_shape[1:]
        if stride < 1 or h % stride or w % stride:
            raise ValueError(f"stride {stride} does not divide both sides of an image of {h}×{w}")
        if kernel.ndim != 3 or kernel.shape[1] > h or kernel.shape[2] > w:
            raise ValueError(
                f"kernels must be [B, kh, kw] with kh ≤ {h}, kw ≤ {w}, not {tuple(kernel.shape)}"
            )
        self.stride, self.coarse = stride, (h // stride, w // stride)
        phases = polyphase(_reflect(_centred(kernel.double(), h, w)), stride)
        spectrum = torch.fft.fft2(phases).conj()  # K_ab [B, s², h/s, w/s], on the full coarse grid
        power = spectrum.abs().square().sum(1)
        values = ((power + _reflect(power)) / 2).sqrt()  # symmetric, so pairs ±f stay together
        values = values * (values > tol * values.amax((-2, -1), keepdim=True))
        half = self.coarse[1] // 2 + 1
        spectrum = (spectrum * (values > 0)[:, None])[..., :half]
        precision = full_precision(kernel)
        self.values = values.to(precision)  # [B, h/s, w/s]
        self.spectrum = torch.view_as_real(spectrum).to(precision)  # [B, s², h/s, w/(2s)+1, 2]

    # ---- direct forms -------------------------------------------------------------------------

    def H(self, x: Tensor) -> Tensor:
        self.check_shape(x)
        return self._inverse(self._measure(x)).flatten(-3)

    def H_adjoint(self, y: Tensor) -> Tensor:
        return self._spread(self._transform(y))

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        inverse = regularised_gain(self.values, noise_level) / torch.where(
            self.values > 0, self.values, 1
        )  # 1 / (G + σ²)
        coarse = self._transform(y)
        inverse = inverse[..., : coarse.shape[-1]].unsqueeze(1)
        return self._spread(coarse * per_image(inverse, coarse))

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
        return self._scaled(self._hartley(self.H(x)))

    def V(self, z: Tensor) -> Tensor:
        return self.H_adjoint(self._hartley(self._scaled(full_precision(z))))

    def Ut(self, y: Tensor) -> Tensor:
        return self._kept(self._hartley(full_precision(y)))

    def U(self, z: Tensor) -> Tensor:
        return self._hartley(self._kept(full_precision(z)))

    def _hartley(self, y: Tensor) -> Tensor:
        """Re F − Im F of the orthonormal transform: real, symmetric and its own inverse."""
        spectrum = torch.fft.fft2(self.measurement_image(y), norm="ortho")
        return (spectrum.real - spectrum.imag).flatten(-3)

    def _scaled(self, z: Tensor) -> Tensor:
        s = per_image(self.s, z)
        return torch.where(s > 0, z / torch.where(s > 0, s, 1), 0)

    def _kept(self, z: Tensor) -> Tensor:
        return z * (per_image(self.s, z) > 0)

    # ---- spectra of the coarse grid -----------------------------------------------------------

    def _kernel(self, like: Tensor) -> Tensor:
        """K_ab, broadcast over the channels: `[B, (1,) 1, s², h/s, w/(2s)+1]` complex."""
        spectrum = torch.view_as_complex(self.spectrum).unsqueeze(1)
        return per_image(spectrum, like)

    def _measure(self, x: Tensor) -> Tensor:
        phases = rfft2(polyphase(full_precision(x), self.stride))
        return (self._kernel(phases) * phases).sum(-3)

    def _spread(self, coarse: Tensor) -> Tensor:
        coarse = coarse.unsqueeze(-3)
        phases = irfft2(self._kernel(coarse).conj() * coarse, self.coarse)
        return merge_phases(phases, self.stride)

    def _transform(self, y: Tensor) -> Tensor:
        return rfft2(self.measurement_image(full_precision(y)))

    def _inverse(self, coarse: Tensor) -> Tensor:
        return irfft2(coarse, self.coarse)


def polyphase(x: Tensor, stride: int) -> Tensor:
    """`[..., h, w]` to the s² components `[..., s², h/s, w/s]`, x_ab = x[a::s, b::s]."""
    x = x.unflatten(-1, (-1, stride)).unflatten(-3, (-1, stride))  # h/s s w/s s
    return x.movedim((-3, -1), (-4, -3)).flatten(-4, -3)


def merge_phases(x: Tensor, stride: int) -> Tensor:
    """Inverse of `polyphase`: `[..., s², h/s, w/s]` to `[..., h, w]`."""
    x = x.unflatten(-3, (stride, stride)).movedim((-4, -3), (-3, -1))
    return x.flatten(-4, -3).flatten(-2, -1)


def _centred(kernel: Tensor, h: int, w: int) -> Tensor:
    """Zero-pad to h×w with the centre of the kernel at index (0, 0)."""
    kh, kw = kernel.shape[-2:]
    padded = torch.nn.functional.pad(kernel, (0, w - kw, 0, h - kh))
    return padded.roll((-(kh // 2), -(kw // 2)), (-2, -1))


def _reflect(x: Tensor) -> Tensor:
    """x[−i, −j] on the circular grid; on a spectrum, f → −f."""
    return x.flip((-2, -1)).roll((1, 1), (-2, -1))
