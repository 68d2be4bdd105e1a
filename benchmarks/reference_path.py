"""The plain reference path: the simplest form of what the project computes in faster ways.

Tests compare results with it, `benchmarks.speed` compares times. A blur is complex transforms of
every channel on a doubled, zero-padded grid. A matrix stands beside its pseudo-inverse, made by a
float64 SVD. A mask is as large as the image. Attention is a masked softmax over all tokens. Norms
are their formula. Pictures are opened one by one.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from degradation import LinearOperator, MatrixDegradation, MotionBlur, Problem
from networks import cpu, layers
from networks.attention import BACKENDS, use_backend

# ---- operators


class PlainOperator(LinearOperator):
    """H and H† of images `[B, C, h, w]` or stacks of them `[B, K, C, h, w]`, without noise."""

    def H(self, x: Tensor) -> Tensor:
        """To measurements `[B, M]` or `[B, K, M]`."""
        return self.measure(x) if x.ndim == 5 else self.measure(x[:, None])[:, 0]

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        """Back."""
        return self.restore(y) if y.ndim == 3 else self.restore(y[:, None])[:, 0]

    def measure(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def restore(self, y: Tensor) -> Tensor:
        raise NotImplementedError


class PlainBlur(PlainOperator):
    """kernel `[B, kh, kw]`, its centre at (kh // 2, kw // 2). y holds the real and imaginary parts
    of the sub-sampled spectrum."""

    def __init__(self, kernel: Tensor, stride: int, image_shape: tuple[int, int, int]):
        self.image_shape, self.stride = image_shape, stride
        h, w = 2 * image_shape[1], 2 * image_shape[2]
        kh, kw = kernel.shape[1:]
        padded = F.pad(kernel, (0, w - kw, 0, h - kh)).roll((-(kh // 2), -(kw // 2)), (1, 2))
        self.spectrum = torch.fft.fft2(padded)[:, None, None]
        power = self._fold(self.spectrum.abs().square())
        self.inverse = torch.where(power > 1e-12 * power.amax(), 1 / power, 0)

    def measure(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        spectrum = torch.fft.fft2(F.pad(x, (0, w, 0, h)).to(torch.complex64))
        return torch.view_as_real(self._fold(self.spectrum * spectrum)).flatten(2)

    def restore(self, y: Tensor) -> Tensor:
        (channels, h, w), s = self.image_shape, self.stride
        parts = y.unflatten(-1, (channels, 2 * h // s, 2 * w // s, 2)).contiguous()
        coarse = torch.view_as_complex(parts) * self.inverse
        spectrum = self.spectrum.conj() * coarse.repeat(1, 1, 1, s, s)
        return torch.fft.ifft2(spectrum).real[..., :h, :w]

    def _fold(self, spectrum: Tensor) -> Tensor:
        """Mean over the frequencies that sub-sampling cannot tell apart."""
        s = self.stride
        return spectrum.unflatten(-1, (s, -1)).unflatten(-3, (s, -1)).mean((-4, -2))


class PlainMatrix(PlainOperator):
    """matrix `[B, M, C·h·w]`; a row of zeros does not exist."""

    def __init__(self, matrix: Tensor, image_shape: tuple[int, int, int]):
        self.image_shape, self.matrix = image_shape, matrix
        self.pinv = torch.linalg.pinv(matrix.double()).to(matrix.dtype)

    def measure(self, x: Tensor) -> Tensor:
        return x.flatten(2) @ self.matrix.mT

    def restore(self, y: Tensor) -> Tensor:
        return (y @ self.pinv.mT).unflatten(-1, self.image_shape)


class PlainMask(PlainOperator):
    """mask `[B, 1, h, w]`, 1 = visible."""

    def __init__(self, mask: Tensor, image_shape: tuple[int, int, int]):
        self.image_shape = image_shape
        self.mask = mask.expand(-1, *image_shape).reshape(len(mask), 1, math.prod(image_shape))

    def measure(self, x: Tensor) -> Tensor:
        return x.flatten(2) * self.mask

    def restore(self, y: Tensor) -> Tensor:
        return (y * self.mask).unflatten(-1, self.image_shape)


def plain_operator(
    family: Any, structure: Any, operator: LinearOperator, seeds: Sequence[int]
) -> PlainOperator:
    """The plain form of what a family of blurs, matrices or masks has drawn by these seeds."""
    shape, drawn = operator.image_shape, operator  # type: Any, Any
    if isinstance(family, MotionBlur):
        kernels = family.kernels(shape, structure, seeds)
        return PlainBlur(kernels.to(operator.s.device), structure, shape)
    if isinstance(family, MatrixDegradation):
        return PlainMatrix(drawn.large, shape)
    return PlainMask(drawn.mask, shape)


def plain_problem(operator: PlainOperator, x: Tensor) -> Problem:
    """Measurements of images x by a plain operator."""
    return Problem(operator, operator.H(x))


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
        self.hidden = ~dense_mask(h, w, kernel).to(device)

    def __call__(self, q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        logits = [
            torch.einsum("bind,bjnd->bnij", q.flatten(1, 2), k.to(q).flatten(1, 2))
            for k, _ in streams
        ]
        masked = torch.cat([part.masked_fill(self.hidden, -torch.inf) for part in logits], -1)
        values = torch.cat([v.flatten(1, 2) for _, v in streams], 1)
        out = torch.einsum("bnij,bjnd->bind", masked.softmax(-1).to(values.dtype), values)
        return out.unflatten(1, q.shape[1:3])


def dense_attention(q: Tensor, streams: list[tuple[Tensor, Tensor]], kernel: int | None) -> Tensor:
    """The same in one call."""
    h, w = q.shape[1:3]
    return DenseNeighbourhood(h, w, kernel, len(streams), q.device)(q, streams)


def plain_norm(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """x · scale / rms(x) over the last dimension."""
    return x * scale / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@contextmanager
def plain_layers() -> Iterator[None]:
    """Networks inside attend and normalise plainly, by PyTorch's own matrix products."""
    norm, onednn = layers.rms_norm, cpu.uses_onednn()
    layers.rms_norm = plain_norm
    cpu.use_onednn(False)
    BACKENDS["dense"] = DenseNeighbourhood
    try:
        with use_backend("dense"):
            yield
    finally:
        layers.rms_norm = norm
        cpu.use_onednn(onednn)
        BACKENDS.pop("dense", None)


# ---- data


def plain_batches(folder: Path, batch: int) -> Iterator[Tensor]:
    """Batches `[batch, 3, h, w]` of a folder's PNG files, opened one by one, over and over."""
    paths = itertools.cycle(sorted(folder.rglob("*.png")))
    while True:
        opened = (Image.open(path) for path in itertools.islice(paths, batch))
        pictures = [np.asarray(image.convert("RGB")) for image in opened]
        yield torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous()
