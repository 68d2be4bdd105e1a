"""Operators on the features of a network: tokens `[B, h, w, d]` read as a stack of images.

A token's d = p·p·K·C values are the p×p pixels, C colours each, of K images (`p q k c`). Measured
features have the stack on their last axis but one, `[..., K, n]`, so that a linear map mixes it.
"""

from functools import singledispatch
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
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


class ImageFeatures:
    """Any operator: the tokens become images and back. Measured: `[B, K, M]`."""

    def __init__(self, operator: LinearOperator, y: Tensor, noise_level: Tensor, patch: int):
        self.operator, self.noise_level = operator, noise_level
        self.sizes = {"p": patch, "q": patch, "c": operator.image_shape[0]}
        self.y = y[:, None]

    def H(self, tokens: Tensor) -> Tensor:
        images = rearrange(tokens, "b h w (p q k c) -> b k c (h p) (w q)", **self.sizes)
        return self.operator.H(images)

    def H_pinv(self, measured: Tensor) -> Tensor:
        images = self._images(measured)
        return rearrange(images, "b k c (h p) (w q) -> b h w (p q k c)", **self.sizes)

    def _images(self, measured: Tensor) -> Tensor:
        return self.operator.H_pinv(measured, self.noise_level)


@feature_map.register(DenseMatrix)
class RowFeatures(ImageFeatures):
    """H† is `large`ᵀ·inverse with an inverse `[B, M, M]` that is computed once.

    Columns in the order of the tokens would save no time: the stack lies inside the tokens, and is
    copied to the outside in both cases.
    """

    operator: DenseMatrix

    def __init__(self, operator: DenseMatrix, y: Tensor, noise_level: Tensor, patch: int):
        super().__init__(operator, y, noise_level, patch)
        self.inverse = operator.row_inverse(noise_level)

    def _images(self, measured: Tensor) -> Tensor:
        z = apply_matrix(self.inverse, full_precision(measured))
        return self.operator.unflatten(apply_matrix(self.operator.large.mT, z))


@feature_map.register(Mask)
class MaskedFeatures:
    """A mask multiplies tokens as they lie. Measured: `[B, h, w, p·p, K, C]`."""

    def __init__(self, operator: Mask, y: Tensor, noise_level: Tensor, patch: int):
        def tokens(images: Tensor) -> Tensor:
            pattern = "b c (h p) (w q) -> b h w (p q) 1 c"
            return rearrange(images, pattern, p=patch, q=patch).contiguous()

        self.split = patch * patch, -1, operator.image_shape[0]
        self.mask = tokens(operator.mask)
        self.gain = tokens(regularised_gain(operator.mask, noise_level))
        self.y = tokens(operator.unflatten(full_precision(y)))

    def H(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, self.split) * self.mask

    def H_pinv(self, measured: Tensor) -> Tensor:
        return (measured * self.gain).flatten(-3)


class MatrixFeatures:
    """The same small matrix for every colour: a product with the tokens as they lie.

    With n rows of H for one colour, H† is normalᵀ·gain. Measured: `[B, n, K, C]`.
    """

    def __init__(self, operator: StridedConvolution, y: Tensor, noise_level: Tensor, patch: int):
        channels, *sides = operator.image_shape
        h, w = (side // patch for side in sides)
        self.grid, self.pixels, self.channels = (h, w), patch * patch, channels

        def columns(rows: Tensor) -> Tensor:
            return rearrange(rows, "b n (h p w q) -> b n (h w p q)", h=h, w=w, p=patch, q=patch)

        self.matrix, self.normal = columns(operator.matrix), columns(operator.normal)
        self.gain = operator.gain_matrix(noise_level)  # [B, n, n]
        self.y = operator.planes(y).mT.unsqueeze(2)

    def H(self, tokens: Tensor) -> Tensor:
        columns = tokens.unflatten(-1, (self.pixels, -1)).flatten(1, 3)
        return multiply(self.matrix, columns).unflatten(-1, (-1, self.channels))

    def H_pinv(self, measured: Tensor) -> Tensor:
        columns = multiply(self.normal.mT, multiply(self.gain, measured.flatten(2)))
        return columns.unflatten(1, (*self.grid, -1)).flatten(3)


class PhaseFeatures:
    """A strided convolution: tokens become polyphase components in one move, and back.

    Measured: `[B, K, M]`. A token spans s steps of the stride, or the stride t tokens.
    """

    TOKENS = "b (h t) (w u) (s a r e k c)"
    PHASES = "b k c (t a u e) (h s) (w r)"

    def __init__(self, operator: StridedConvolution, y: Tensor, noise_level: Tensor, patch: int):
        self.operator, self.inverse = operator, operator.inverse(noise_level)
        self.y = y[:, None]
        tokens, steps = max(operator.stride // patch, 1), max(patch // operator.stride, 1)
        pixels = patch // steps
        self.sizes = {"t": tokens, "u": tokens, "s": steps, "r": steps, "a": pixels, "e": pixels}
        self.sizes["c"] = operator.image_shape[0]

    def H(self, tokens: Tensor) -> Tensor:
        x = rearrange(full_precision(tokens), f"{self.TOKENS} -> {self.PHASES}", **self.sizes)
        return self.operator.measure_phases(x)

    def H_pinv(self, measured: Tensor) -> Tensor:
        x = self.operator.phases_pinv(measured, self.inverse)
        return rearrange(x, f"{self.PHASES} -> {self.TOKENS}", **self.sizes)


@feature_map.register
def _(operator: StridedConvolution, y: Tensor, noise_level: Tensor, patch: int) -> FeatureMap:
    if operator.small:
        return MatrixFeatures(operator, y, noise_level, patch)
    if operator.stride % patch and patch % operator.stride:
        return ImageFeatures(operator, y, noise_level, patch)
    return PhaseFeatures(operator, y, noise_level, patch)


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
    eye = torch.eye(n, dtype=dtype, device=weight.device)
    mixed = F.linear(measured.flatten(-2), torch.kron(of_x, eye), bias.repeat_interleave(n))
    mixed = mixed + F.linear(y.flatten(-2), torch.kron(of_y, eye))
    return mixed.unflatten(-1, (stack, n))
