"""Metrics that compare one image with another, or with a measurement: pure tensor functions.

PSNR and SSIM are taken on uint8 images, as they would be saved, and computed in float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation import LinearOperator

_PEAK = 255.0
_WINDOW = 11  # side of the SSIM window, pixels


def to_uint8(x: Tensor) -> Tensor:
    """Float images in [-1, 1], any shape, to uint8 images: floor(clip(127.5 x + 128, 0, 255)).

    The offset of 128 with truncation rounds to the nearest level (EDM, Karras et al. 2022).
    """
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images, any shape, to float32 in [-1, 1]; float images stay as they are."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of uint8 images `[B, C, h, w]`: float64 `[B]`, dB, peak 255.

    10 log10(255² / MSE) with the mean over C, h and w; infinite for identical images (they are
    left out of means). Raises ValueError for other types or unequal shapes.
    """
    _check(a, b)
    mse = (a.double() - b.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(_PEAK**2 / mse)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of uint8 images `[B, C, h, w]`: float64 `[B]`, at most 1.

    Wang et al. 2004: Gaussian window 11×11 of standard deviation 1.5, K1 = 0.01, K2 = 0.03, peak
    255; the mean over the channels and over the windows that lie inside the image. Raises
    ValueError for other types, unequal shapes, or images smaller than the window.
    """
    _check(a, b)
    h, w = a.shape[-2:]
    if min(h, w) < _WINDOW:
        raise ValueError(f"ssim needs images of at least {_WINDOW}×{_WINDOW} pixels, not {h}×{w}")
    a, b = a.double(), b.double()
    products = torch.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _window_means(products)
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    covariance = mean_ab - mean_a * mean_b
    variances = mean_aa - mean_a.square() + mean_bb - mean_b.square()
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a.square() + mean_b.square() + c1) * (variances + c2)
    return (numerator / denominator).mean(dim=(1, 2, 3))


def consistency(degradation: LinearOperator, x: Tensor, y: Tensor) -> Tensor:
    """Mean of (y − Hx)² over the measurement rows that exist, float64 `[B]`.

    x: images `[B, C, h, w]` in [-1, 1]; y: measurements `[B, M]`. Zero where an image has no
    measurement. What y holds in rows that do not exist has no influence, be it not a number.
    """
    rows = degradation.rows
    squares = torch.where(rows, (y - degradation.H(x)).double(), 0.0).square()
    return squares.sum(dim=1) / rows.sum(dim=1).clamp(min=1)


def _check(a: Tensor, b: Tensor) -> None:
    if a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images (see to_uint8), not {a.dtype} and {b.dtype}")
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"expected two [B, C, h, w] of equal shape, not {tuple(a.shape)} and {tuple(b.shape)}"
        )


def _window_means(x: Tensor) -> Tensor:
    """Gaussian-weighted mean of every 11×11 window inside the image, `[..., h - 10, w - 10]`."""
    offsets = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / 1.5).square())
    weights = weights / weights.sum()
    planes = x.reshape(-1, 1, *x.shape[-2:])
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return planes.view(*x.shape[:-2], *planes.shape[-2:])
