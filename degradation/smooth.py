"""The smoothest image that explains a measurement: the linear start that needs no training."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from degradation.base import Degradation

_STEPS = 8  # conjugate-gradient steps: what they leave is small beside the error of the prior
_COUPLING = 0.9  # correlation between the colours
_VARIANCE = 0.25  # prior variance of the mean colour; images are in [-1, 1]
_CONTRAST = 0.06  # prior variance of the pixels around it


def smooth_estimate(operator: Degradation, y: Tensor, noise_level: Tensor) -> Tensor:
    """The MMSE estimate of a Gaussian prior with the power spectrum 1/f² of natural images.

    Without noise it has, of all images with Hx = y, (nearly) the least ‖∇x‖². First the mean
    colour is estimated, then the rest, x = c + ΣHᵀ(HΣHᵀ + σ²I)⁻¹(y − Hc), by conjugate gradients
    in the spectral coordinates of H, where the system is (VᵀΣV + σ²/s²) w = y/s − Vᵀc. The
    covariance Σ is diagonal in the cosine transform, so nothing jumps at the borders, and couples
    the colours. y `[B, M]`, noise_level `[B]`; returns `[B, C, h, w]`.
    """
    s = operator.s
    exists = s > 0
    inverse = torch.where(exists, 1 / torch.where(exists, s, 1), 0)
    noise = (noise_level[:, None].to(s) * inverse).square()
    target = inverse * operator.Ut(y)
    flat = _mean_colour(operator, target, noise)

    def system(w: Tensor) -> Tensor:
        return operator.Vt(_covariance(operator.V(w))) + noise * w

    w = _conjugate_gradients(system, target - operator.Vt(flat))
    return flat + _covariance(operator.V(w))


def _mean_colour(operator: Degradation, target: Tensor, noise: Tensor) -> Tensor:
    """The Bayes estimate of the image's mean colour, as an image `[B, C, h, w]` of that colour."""
    channels, h, w = operator.image_shape
    unit = torch.eye(channels, device=target.device, dtype=target.dtype)[..., None, None]
    response = operator.Vt(unit.expand(len(target), -1, -1, h, w))  # [B, C, R]
    weighted = response / (_CONTRAST + noise)[:, None]
    prior = _VARIANCE * ((1 - _COUPLING) * unit[..., 0, 0] + _COUPLING)
    precision = weighted @ response.mT + torch.linalg.inv(prior)
    colour = torch.linalg.solve(precision, weighted @ target[..., None])
    return colour[..., None].expand(-1, -1, h, w)


def _conjugate_gradients(system: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Solve for each row of target `[B, R]` by itself, from zero."""
    w, residual, direction = torch.zeros_like(target), target, target
    energy = residual.square().sum(1, keepdim=True)
    for _ in range(_STEPS):
        image = system(direction)
        step = energy / (direction * image).sum(1, keepdim=True).clamp(min=1e-30)
        w, residual = w + step * direction, residual - step * image
        before, energy = energy, residual.square().sum(1, keepdim=True)
        direction = residual + energy / before.clamp(min=1e-30) * direction
    return w


def _covariance(x: Tensor) -> Tensor:
    """Σx for images `[B, C, h, w]`."""
    h, w = x.shape[-2:]
    rows, columns = (_cosines(n, x.device, x.dtype) for n in (h, w))
    x = rows.T @ (_power(h, w, x.device, x.dtype) * (rows @ x @ columns.T)) @ columns
    return (1 - _COUPLING) * x + _COUPLING * x.sum(-3, keepdim=True)


@lru_cache(maxsize=16)
def _cosines(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II), `[n, n]`."""
    k = torch.arange(n, dtype=torch.float64)
    basis = math.sqrt(2 / n) * torch.cos(math.pi * k[:, None] * (k + 0.5) / n)
    basis[0] /= math.sqrt(2)
    return basis.to(device, dtype)


@lru_cache(maxsize=16)
def _power(h: int, w: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The spectrum 1/(1 + f²) `[h, w]`, f in half periods of the longer side."""
    longer = max(h, w)
    rows, columns = (torch.arange(n, dtype=torch.float64) * longer / n for n in (h, w))
    power = 1 / (1 + rows[:, None].square() + columns.square())
    return (_CONTRAST * power / power.mean()).to(device, dtype)
