"""The smoothest image that explains a measurement, and how far off it is likely to be.

Both come from a Gaussian prior with the power-law spectrum of natural images: nothing is trained.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from degradation.base import Degradation
from degradation.randomness import Draws

# Exponent, coupling and share were chosen on the built-in training photographs.
_STEPS = 8  # conjugate-gradient steps, enough without noise: the projection does the rest
_NOISY_STEPS = 32  # and with it, where small singular values converge late
_EXPONENT = 2.25  # of the power spectrum, near 2 for photographs of all kinds
_COUPLING = 0.6  # correlation between the colours
_COLOUR = 0.25  # prior variance of the mean colour; images are in [-1, 1]
_CONTRAST = 0.06  # prior variance of the pixels around it
_LEAST_ERROR = 0.005  # half a grey level: an operator that hides nothing leaves that much
_SHARE = 0.05  # of the prior in the contrast: what is hidden may be less flat than what is seen


class SmoothEstimate(NamedTuple):
    """A linear estimate of x0, and the scales of the problem that are left."""

    image: Tensor
    """`[B, C, h, w]`"""
    mean: Tensor
    """Its mean colour, `[B, C, 1, 1]`"""
    contrast: Tensor
    """Likely standard deviation of the pixels of x0 around its mean colour, `[B]`"""
    error: Tensor
    """Likely root-mean-square error of the image, `[B]`"""

    def refine(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What x = x0 + σε `[B, C, h, w]` adds to the image: a Wiener filter of x − image.

        sigma `[B]`. In float32 even under autocast: at small σ the filter is nearly the identity.
        """
        with torch.autocast(x.device.type, enabled=False):
            rows, columns, _ = _spectrum(*x.shape[-2:], x.device, x.dtype)
            grey, rest = self._gains(sigma)
            waves = rows @ (x - self.image) @ columns.T
            mean = waves.mean(1, keepdim=True)
            waves = grey[:, None] * mean + rest[:, None] * (waves - mean)
            return rows.T @ waves @ columns

    def remaining_error(self, sigma: Tensor) -> Tensor:
        """Likely root-mean-square error `[B]` of image + refine(x, σ); sigma `[B]`."""
        channels = self.image.shape[1]
        grey, rest = self._gains(sigma)
        return sigma * ((grey + (channels - 1) * rest).mean((1, 2)) / channels).sqrt()

    def _gains(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Wiener gains `[B, h, w]` for the mean of the colours and for what differs from it.

        The error of the image is taken to have the spectrum of the prior, and what of it exceeds
        the contrast to be an error of the mean colour.
        """
        channels, h, w = self.image.shape[1:]
        power = _spectrum(h, w, sigma.device, self.image.dtype)[2]
        detail, total = self.contrast.square(), self.error.square()
        spectrum = power / _CONTRAST * torch.minimum(detail, total)[:, None, None]
        constant = torch.zeros_like(power)
        constant[0, 0] = h * w
        spectrum = spectrum + constant * (total - detail).clamp(min=0)[:, None, None]
        variance = sigma.square()[:, None, None]
        # The two eigenvalues of the correlation between the colours.
        grey = spectrum * (1 - _COUPLING + channels * _COUPLING)
        rest = spectrum * (1 - _COUPLING)
        return grey / (grey + variance), rest / (rest + variance)


def smooth_estimate(operator: Degradation, y: Tensor, noise_level: Tensor) -> SmoothEstimate:
    """MMSE estimate of a Gaussian prior of mean colour and of detail with a power-law spectrum.

    The covariance Σ of the detail is diagonal in the cosine transform, so nothing jumps at the
    borders, and couples the colours. x = c + ΣHᵀ(HΣHᵀ + σ²I)⁻¹(y − Hc) comes from conjugate
    gradients in the spectral coordinates of H, where the system is (VᵀΣV + σ²/s²) w = y/s − Vᵀc.
    Without noise x is then projected onto Hx = y.

    The same is done beside it for one image drawn from the prior, whose error is known: that gives
    the likely error, once the contrast is scaled by the ratio of the explained energies
    (y/s − Vᵀc)ᵀw. y `[B, M]`, noise_level `[B]`. Raises ValueError for operators without SVD.
    """
    operator.check_diagonalisable("the smooth start, which consistent networks begin with,")
    probe, probe_noise = (
        part.to(y) for part in _probe(operator.image_shape, y.shape[-1], y.device)
    )
    simulated = operator.H(probe.expand(len(y), -1, -1, -1)) + noise_level[:, None] * probe_noise
    s = operator.s
    inverse = torch.where(s > 0, 1 / torch.where(s > 0, s, 1), 0)[:, None]
    noise = (noise_level[:, None, None].to(s) * inverse).square()
    measured = torch.stack((y, simulated), 1)
    target = inverse * operator.Ut(measured)  # [B, 2, R]
    flat = _mean_colour(operator, target, noise)
    target = target - operator.Vt(flat)

    def system(w: Tensor) -> Tensor:
        return operator.Vt(_covariance(operator.V(w))) + noise * w

    w = _conjugate_gradients(system, target, noise_level > 0)
    images = flat + _covariance(operator.V(w))  # [B, 2, C, h, w]
    exact = (noise_level == 0)[:, None, None, None, None]
    images = torch.where(exact, operator.project(images, measured), images)
    energy = (target * w).sum(-1).clamp(min=0)
    relative = (2 + energy[:, 0]) / (2 + energy[:, 1])  # of 0 and 0, the prior
    relative = _SHARE + (1 - _SHARE) * relative
    error = (images[:, 1] - probe).square().mean((1, 2, 3))
    return SmoothEstimate(
        images[:, 0],
        images[:, 0].mean((-2, -1), keepdim=True),
        (_CONTRAST * relative).sqrt(),
        (error * relative).sqrt().clamp(min=_LEAST_ERROR),
    )


def _mean_colour(operator: Degradation, target: Tensor, noise: Tensor) -> Tensor:
    """Bayes estimates of the mean colour, as images of it: `[B, K, R]` to `[B, K, C, h, w]`."""
    channels, h, w = operator.image_shape
    unit = torch.eye(channels, device=target.device, dtype=target.dtype)
    response = operator.Vt(unit[..., None, None].expand(len(target), -1, -1, h, w))  # [B, C, R]
    weighted = response / (_CONTRAST + noise)
    prior = _COLOUR * ((1 - _COUPLING) * unit + _COUPLING)
    precision = weighted @ response.mT + torch.linalg.inv(prior)
    colour = torch.linalg.solve(precision, weighted @ target.mT)  # [B, C, K]
    return colour.mT[..., None, None].expand(-1, -1, -1, h, w)


def _conjugate_gradients(
    system: Callable[[Tensor], Tensor], target: Tensor, noisy: Tensor
) -> Tensor:
    """Solve for each row of target `[B, K, R]` by itself, from zero; longer where noisy `[B]`."""
    w, residual, direction = torch.zeros_like(target), target, target
    energy = residual.square().sum(-1, keepdim=True)
    steps = torch.where(noisy, _NOISY_STEPS, _STEPS)[:, None, None]
    for i in range(_NOISY_STEPS if noisy.any() else _STEPS):
        image = system(direction)
        step = energy / (direction * image).sum(-1, keepdim=True).clamp(min=1e-30)
        step = torch.where(i < steps, step, 0)
        w, residual = w + step * direction, residual - step * image
        before, energy = energy, residual.square().sum(-1, keepdim=True)
        direction = residual + energy / before.clamp(min=1e-30) * direction
    return w


def _covariance(x: Tensor) -> Tensor:
    """Σx for images `[..., C, h, w]`."""
    rows, columns, power = _spectrum(*x.shape[-2:], x.device, x.dtype)
    x = rows.T @ (power * (rows @ x @ columns.T)) @ columns
    return (1 - _COUPLING) * x + _COUPLING * x.sum(-3, keepdim=True)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later, when gradients may be wanted
def _spectrum(
    h: int, w: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine transforms of rows and columns, and the power (1 + f²)^(-α/2), f in half periods."""
    longer = max(h, w)
    rows, columns = (torch.arange(n, dtype=torch.float64) * longer / n for n in (h, w))
    power = (1 + rows[:, None].square() + columns.square()) ** (-_EXPONENT / 2)
    parts = _cosines(h), _cosines(w), _CONTRAST * power / power.mean()
    vertical, horizontal, power = (part.to(device, dtype) for part in parts)
    return vertical, horizontal, power


def _cosines(n: int) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II), `[n, n]`."""
    k = torch.arange(n, dtype=torch.float64)
    basis = math.sqrt(2 / n) * torch.cos(math.pi * k[:, None] * (k + 0.5) / n)
    basis[0] /= math.sqrt(2)
    return basis


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later, when gradients may be wanted
def _probe(
    image_shape: tuple[int, int, int], rows: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """One image `[C, h, w]` of the prior, the same for every problem, and unit noise `[rows]`."""
    channels, h, w = image_shape
    draws = Draws([0])
    white = draws.normal(image_shape, "smooth/detail")[0]
    shared = draws.normal((1, h, w), "smooth/shared detail")[0]
    white = math.sqrt(1 - _COUPLING) * white + math.sqrt(_COUPLING) * shared
    vertical, horizontal, power = _spectrum(h, w, torch.device("cpu"), torch.float32)
    detail = vertical.T @ (power.sqrt() * white) @ horizontal
    noise = draws.normal((rows,), "smooth/noise")[0]
    return (math.sqrt(_COLOUR) + detail).to(device), noise.to(device)
