"""Operators on the features of a network: tokens `[B, h, w, d]` read as a stack of images.

A token's d = p·p·K·C values are the p×p pixels, C colours each, of K images (`p q k c`). Measured
features have the stack on their last axis but one, `[..., K, n]`, so that a linear map mixes it.
"""

from functools import singledispatch
from typing import Protocol

import torch
from torch import Tensor

from degradation import DenseMatrix, LinearOperator, Mask, StridedConvolution
from degradation.base import apply_matrix, full_precision, multiply, regularised_gain


class FeatureMap(Protocol):
    """H and H† of one problem's operator on tokens of one patch size; `y` fits measured features.

    What depends on H, y and the noise level alone is computed when it is made.
    """

    y: Tensor  # [..., 1, n]

    def H(self, tokens: Tensor) -> Tensor:
        """`[B, h, w, d]` to measured features `[..., K, n]`."""

    def H_pinv(self, measured: Tensor) -> Tensor:
        """Back to tokens, regularised by the noise level."""


@singledispatch
def feature_map(operator: LinearOperator, y: Tensor, noise_level: Tensor, patch: int) -> FeatureMap:
    """The operator on features of tokens of p×p pixels, in the layout that is cheapest for it.

    y: `[B, M]`; noise_level: `[B]`. An operator without a layout of its own turns features into
    images and back.
    """
    return ImageFeatures(operator, y, noise_level, patch)


class _Stacked:
    """The tokens become images and back. Measured: `[B, K, M]`."""

    def __init__(self, operator: LinearOperator, y: Tensor, patch: int):
        self.operator, self.patch = operator, patch
        self.y = y[:, None]

    def H(self, tokens: Tensor) -> Tensor:
        p, c = self.patch, self.operator.image_shape[0]
        parts = tokens.unflatten(-1, (p, p, -1, c)).permute(0, 5, 6, 1, 3, 2, 4)  # b k c h p w q
        return self.operator.H(parts.flatten(5, 6).flatten(3, 4))

    def H_pinv(self, measured: Tensor) -> Tensor:
        parts = _parts(self._images(measured), self.patch)
        return parts.permute(0, 3, 5, 4, 6, 1, 2).flatten(3)

    def _images(self, measured: Tensor) -> Tensor:
        raise NotImplementedError


class ImageFeatures(_Stacked):
    """Any operator, by its own H†."""

    def __init__(self, operator: LinearOperator, y: Tensor, noise_level: Tensor, patch: int):
        super().__init__(operator, y, patch)
        self.noise_level = noise_level

    def _images(self, measured: Tensor) -> Tensor:
        return self.operator.H_pinv(measured, self.noise_level)


class RowFeatures(_Stacked):
    """An operator whose H† is rowsᵀ·inverse: rows `[B, M, C·h·w]`, inverse `[B, M, M]`.

    The columns in the order of the tokens would spare nothing, because the stack lies inside the
    tokens and has to be brought outside either way.
    """

    def __init__(self, operator: DenseMatrix, y: Tensor, patch: int, rows: Tensor, inverse: Tensor):
        super().__init__(operator, y, patch)
        self.rows, self.inverse = rows, inverse

    def _images(self, measured: Tensor) -> Tensor:
        z = apply_matrix(self.inverse, full_precision(measured))
        return self.operator.unflatten(apply_matrix(self.rows.mT, z))


class MaskedFeatures:
    """A mask multiplies each value; the tokens stay as they lie. Measured: `[B, h, w, p·p, K, C]`.

    mask: `[B, 1 or C, h, w]`; y: images `[B, C, h, w]`.
    """

    def __init__(self, mask: Tensor, y: Tensor, noise_level: Tensor, patch: int):
        def tokens(images: Tensor) -> Tensor:
            parts = _parts(images, patch).permute(0, 2, 4, 3, 5, 1)  # b h w p q c
            return parts.flatten(3, 4).unsqueeze(-2).contiguous()

        self.pixels, self.channels = patch * patch, y.shape[1]
        self.mask = tokens(mask)
        self.gain = tokens(regularised_gain(mask, noise_level))
        self.y = tokens(full_precision(y))

    def H(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.pixels, -1, self.channels)) * self.mask

    def H_pinv(self, measured: Tensor) -> Tensor:
        return (measured * self.gain).flatten(-3)


class MatrixFeatures:
    """The same small matrix for every colour: a product with the tokens as they lie.

    matrix: the rows of H for one colour `[B, n, h·w]`; normal, of the same shape, and gain
    `[B, n, n]`: H† for one colour is normalᵀ·gain; y: `[B, C, n]`. Measured: `[B, n, K, C]`.
    """

    def __init__(
        self,
        matrix: Tensor,
        normal: Tensor,
        gain: Tensor,
        y: Tensor,
        image_size: tuple[int, int],
        patch: int,
    ):
        self.grid = image_size[0] // patch, image_size[1] // patch
        self.channels = y.shape[1]

        def columns(rows: Tensor) -> Tensor:
            return _parts(rows.unflatten(-1, image_size), patch).transpose(-3, -2).flatten(2)

        self.matrix = columns(matrix)
        self.normal, self.gain = columns(normal), gain
        self.y = y.mT.unsqueeze(2)

    def H(self, tokens: Tensor) -> Tensor:
        pixels = self.matrix.shape[-1] // (self.grid[0] * self.grid[1])
        columns = tokens.unflatten(-1, (pixels, -1)).flatten(1, 3)
        return multiply(self.matrix, columns).unflatten(-1, (-1, self.channels))

    def H_pinv(self, measured: Tensor) -> Tensor:
        columns = multiply(self.normal.mT, multiply(self.gain, measured.flatten(2)))
        return columns.unflatten(1, (*self.grid, -1)).flatten(3)


class PhaseFeatures:
    """A strided convolution: tokens become polyphase components in one move, and back.

    y: `[B, M]`; inverse: the spectrum of (HHᵀ + σ²I)⁻¹. Measured: `[B, K, M]`.
    """

    def __init__(self, operator: StridedConvolution, inverse: Tensor, y: Tensor, patch: int):
        self.operator, self.inverse = operator, inverse
        self.y = y[:, None]
        stride = operator.stride
        # A token spans several steps of the stride, or the stride several tokens.
        self.tokens, self.steps = max(stride // patch, 1), max(patch // stride, 1)
        self.pixels = patch // self.steps

    def H(self, tokens: Tensor) -> Tensor:
        x = full_precision(tokens).unflatten(
            -1, (*(self.steps, self.pixels) * 2, -1, self.operator.image_shape[0])
        )
        x = x.unflatten(2, (-1, self.tokens)).unflatten(1, (-1, self.tokens))
        x = x.permute(0, 9, 10, 2, 6, 4, 8, 1, 5, 3, 7)  # b k c, phase t a u b, place h s w r
        x = x.flatten(9).flatten(7, 8).flatten(3, 6)
        return self.operator.measure_phases(x)

    def H_pinv(self, measured: Tensor) -> Tensor:
        x = self.operator.phases_pinv(measured, self.inverse)
        x = x.unflatten(-1, (-1, self.steps)).unflatten(-3, (-1, self.steps))
        x = x.unflatten(3, (self.tokens, self.pixels) * 2)
        x = x.permute(0, 7, 3, 9, 5, 8, 4, 10, 6, 1, 2)
        return x.flatten(5).flatten(3, 4).flatten(1, 2)


@feature_map.register
def _(operator: Mask, y: Tensor, noise_level: Tensor, patch: int) -> FeatureMap:
    return MaskedFeatures(operator.mask, operator.unflatten(y), noise_level, patch)


@feature_map.register
def _(operator: DenseMatrix, y: Tensor, noise_level: Tensor, patch: int) -> FeatureMap:
    return RowFeatures(operator, y, patch, operator.large, operator.row_inverse(noise_level))


@feature_map.register
def _(operator: StridedConvolution, y: Tensor, noise_level: Tensor, patch: int) -> FeatureMap:
    if operator.small:
        gain, planes = operator.gain_matrix(noise_level), operator.planes(y)
        size = operator.image_shape[1:]
        return MatrixFeatures(operator.matrix, operator.normal, gain, planes, size, patch)
    if operator.stride % patch and patch % operator.stride:
        return ImageFeatures(operator, y, noise_level, patch)
    return PhaseFeatures(operator, operator.inverse(noise_level), y, patch)


def _parts(images: Tensor, patch: int) -> Tensor:
    """Images `[..., h·p, w·q]` as `[..., h, p, w, q]`."""
    return images.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))


def mix(measured: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """T[y, measured]: a linear map along the stack, of weight `[K, 1 + K]` and bias `[K]`."""
    stack, n = measured.shape[-2:]
    dtype = torch.promote_types(torch.promote_types(measured.dtype, y.dtype), weight.dtype)
    measured, y, weight, bias = (x.to(dtype) for x in (measured, y, weight, bias))
    of_y, of_x = weight[:, :1], weight[:, 1:]
    if measured.ndim == 3:
        # matmul would fold the batch into one product, with a transposed copy on either side.
        mixed = torch.bmm(of_x.expand(len(measured), -1, -1), measured)
        return mixed + of_y * y + bias[:, None]
    # Many stacks of few values: one product with a larger matrix instead of many small ones.
    eye = torch.eye(n, dtype=weight.dtype, device=weight.device)
    linear = torch.nn.functional.linear
    mixed = linear(measured.flatten(-2), torch.kron(of_x, eye), bias.repeat_interleave(n))
    mixed = mixed + linear(y.flatten(-2), torch.kron(of_y, eye))
    return mixed.unflatten(-1, (stack, n))
