"""The plain reference path: the simplest form of what the project computes in faster ways.

Tests compare results with it, `benchmarks.speed` compares times. A blur is complex transforms of
every channel on a doubled, zero-padded grid. A matrix stands beside its pseudo-inverse, made by a
float64 SVD. A mask is as large as the image. Attention is a masked softmax over all tokens. Norms
are their formula.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation import DenseMatrix, Family, LinearOperator
from degradation.base import per_image
from networks import cpu, layers
from networks.attention import BACKENDS, use_backend

# ---- operators: H and H† as a `LinearOperator` has them, without noise


class PlainBlur(LinearOperator):
    """kernel `[B, kh, kw]`, its centre at (kh // 2, kw // 2). y holds the real and imaginary parts
    of the sub-sampled spectrum."""

    def __init__(self, kernel: Tensor, stride: int, image_shape: tuple[int, int, int]):
        self.image_shape, self.stride = image_shape, stride
        h, w = 2 * image_shape[1], 2 * image_shape[2]
        kh, kw = kernel.shape[1:]
        padded = F.pad(kernel, (0, w - kw, 0, h - kh)).roll((-(kh // 2), -(kw // 2)), (1, 2))
        self.spectrum = torch.fft.fft2(padded)[:, None]
        power = self._fold(self.spectrum.abs().square())
        self.inverse = torch.where(power > 1e-12 * power.amax(), 1 / power, 0)

    def H(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        spectrum = torch.fft.fft2(F.pad(x, (0, w, 0, h)).to(torch.complex64))
        return torch.view_as_real(self._fold(per_image(self.spectrum, x) * spectrum)).flatten(-4)

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        (channels, h, w), s = self.image_shape, self.stride
        parts = y.unflatten(-1, (channels, 2 * h // s, 2 * w // s, 2)).contiguous()
        coarse = torch.view_as_complex(parts)
        repeated = (coarse * per_image(self.inverse, coarse)).tile(s, s)
        return torch.fft.ifft2(per_image(self.spectrum, coarse).conj() * repeated).real[..., :h, :w]

    def _fold(self, spectrum: Tensor) -> Tensor:
        """Mean over the frequencies that sub-sampling cannot tell apart."""
        s = self.stride
        return spectrum.unflatten(-1, (s, -1)).unflatten(-3, (s, -1)).mean((-4, -2))


class PlainMatrix(LinearOperator):
    """matrix `[B, M, C·h·w]`; a row of zeros does not exist."""

    def __init__(self, matrix: Tensor, image_shape: tuple[int, int, int]):
        self.image_shape, self.matrix = image_shape, matrix
        self.pinv = torch.linalg.pinv(matrix.double()).to(matrix.dtype)

    def H(self, x: Tensor) -> Tensor:
        return torch.einsum("b...n,bmn->b...m", x.flatten(-3), self.matrix)

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        return self.unflatten(torch.einsum("b...m,bnm->b...n", y, self.pinv))


class PlainMask(LinearOperator):
    """mask `[B, 1, h, w]`, 1 = visible."""

    def __init__(self, mask: Tensor, image_shape: tuple[int, int, int]):
        self.image_shape = image_shape
        self.mask = mask.expand(-1, *image_shape).flatten(1)

    def H(self, x: Tensor) -> Tensor:
        x = x.flatten(-3)
        return x * per_image(self.mask, x)

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        return self.unflatten(y * per_image(self.mask, y))


def plain_operator(
    family: Family, structure: Any, operator: Any, seeds: Sequence[int]
) -> LinearOperator:
    """The plain form of what a family of blurs, matrices or masks has drawn by these seeds."""
    shape = operator.image_shape
    kernels = family.kernels(shape, structure, seeds)
    if kernels is not None:
        return PlainBlur(kernels.to(operator.s.device), structure, shape)
    if isinstance(operator, DenseMatrix):
        return PlainMatrix(operator.large, shape)
    return PlainMask(operator.mask, shape)


# ---- the network


def dense_mask(h: int, w: int, kernel: int | None) -> Tensor:
    """Which tokens each token sees, bool `[h·w, h·w]`: a window around it, pushed inside at the
    borders as NATTEN's; all of them without a kernel."""

    def axis(n: int) -> Tensor:
        side = min(kernel or n, n)
        start = (torch.arange(n) - side // 2).clamp(0, n - side)
        offset = torch.arange(n) - start[:, None]
        return (offset >= 0) & (offset < side)

    return (axis(h)[:, None, :, None] & axis(w)[None, :, None, :]).reshape(h * w, h * w)


class DenseNeighbourhood:
    """Attention by its definition, as a backend: one softmax over the masked logits of all tokens
    of all streams. Maps q `[B, h, w, heads, d]` and pairs (k, v) like it to the same shape."""

    def __init__(self, h: int, w: int, kernel: int | None, streams: int, device: torch.device):
        self.hidden = ~dense_mask(h, w, kernel).repeat(1, streams).to(device)

    def __call__(self, q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        keys, values = (torch.cat(part, 1).flatten(1, 2) for part in zip(*streams, strict=True))
        logits = torch.einsum("bind,bjnd->bnij", q.flatten(1, 2), keys.to(q))
        weights = logits.masked_fill(self.hidden, -torch.inf).softmax(-1).to(values.dtype)
        return torch.einsum("bnij,bjnd->bind", weights, values).unflatten(1, q.shape[1:3])


def plain_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x · scale / rms(x) over the last dimension."""
    return x * scale / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@contextmanager
def plain_layers() -> Iterator[None]:
    """Networks inside attend and normalise plainly, by PyTorch's own matrix products."""
    onednn = cpu.uses_onednn()
    cpu.use_onednn(False)
    norms = patch.object(layers, "rms_norm", plain_norm)
    try:
        with norms, patch.dict(BACKENDS, dense=DenseNeighbourhood), use_backend("dense"):
            yield
    finally:
        cpu.use_onednn(onednn)
