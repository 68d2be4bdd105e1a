"""Real two-dimensional Fourier transforms of many small planes."""

from functools import lru_cache

import torch
from torch import Tensor

# Up to this many values a plane's transform is a product with a matrix, which is faster there.
_SMALL = 64


def rfft2(x: Tensor) -> Tensor:
    """`torch.fft.rfft2` of planes `[..., h, w]`: complex `[..., h, w // 2 + 1]`."""
    h, w = x.shape[-2:]
    if h * w > _SMALL:
        return torch.fft.rfft2(x)
    forward, _ = _matrices(h, w, x.dtype, x.device)
    with torch.autocast(x.device.type, enabled=False):
        values = x.flatten(-2) @ forward
    return torch.view_as_complex(values.unflatten(-1, (h, w // 2 + 1, 2)))


def irfft2(z: Tensor, size: tuple[int, int]) -> Tensor:
    """`torch.fft.irfft2` of half spectra `[..., h, w // 2 + 1]` to planes `[..., h, w]`."""
    h, w = size
    if h * w > _SMALL:
        return torch.fft.irfft2(z, s=size)
    values = torch.view_as_real(z.resolve_conj()).flatten(-3)
    _, backward = _matrices(h, w, values.dtype, z.device)
    with torch.autocast(z.device.type, enabled=False):
        return (values @ backward).unflatten(-1, size)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept for later, when gradients may be wanted
def _matrices(h: int, w: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both transforms as real matrices, `[h·w, 2h(w // 2 + 1)]` and back."""
    planes = torch.eye(h * w, dtype=torch.float64).unflatten(1, (h, w))
    forward = torch.view_as_real(torch.fft.rfft2(planes)).flatten(1)
    halves = torch.eye(forward.shape[1], dtype=torch.float64).unflatten(1, (h, w // 2 + 1, 2))
    backward = torch.fft.irfft2(torch.view_as_complex(halves), s=(h, w)).flatten(1)
    return forward.to(device, dtype), backward.to(device, dtype)
