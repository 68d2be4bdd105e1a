"""Transforms of small planes are those of the library."""

import pytest
import torch
from helpers import gaussian

from degradation.fourier import irfft2, rfft2


@pytest.mark.parametrize(
    "size", [(8, 8), (4, 16), (7, 9), (5, 4), (1, 1), (1, 6), (3, 1), (16, 16)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transforms_are_those_of_torch(size, dtype):
    tolerance = {"rtol": 0, "atol": 2e-5 if dtype == torch.float32 else 1e-13}
    x = gaussian(2, 3, *size, dtype=dtype)
    torch.testing.assert_close(rfft2(x), torch.fft.rfft2(x), **tolerance)
    half = size[1] // 2 + 1
    z = torch.complex(*(gaussian(2, 3, size[0], half, seed=s, dtype=dtype) for s in (1, 2)))
    for spectrum in (z, z.conj()):
        expected = torch.fft.irfft2(spectrum, s=size)
        torch.testing.assert_close(irfft2(spectrum, size), expected, **tolerance)


def test_transforms_are_differentiable():
    x = gaussian(2, 4, 4).requires_grad_()
    z = torch.complex(gaussian(2, 4, 3, seed=1), gaussian(2, 4, 3, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: torch.view_as_real(rfft2(x)), [x])
    assert torch.autograd.gradcheck(lambda z: irfft2(z, (4, 4)), [z])


def test_autocast_does_not_shorten_them():
    x = gaussian(2, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(irfft2(rfft2(x), (8, 8)), x, rtol=0, atol=1e-5)
