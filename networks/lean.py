"""Operations that keep less for the backward pass than what their formulas would.

What can be computed again from the input is: a training step on a CPU, or without a compiler, then
needs less memory and moves less of it. A compiler makes this choice itself and gets the formulas.
There are no second derivatives: autograd refuses them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from degradation.base import full_precision


def gated_gelu(x: Tensor) -> Tensor:
    """a · GELU(b), exact, of x = [a, b] along the last dimension."""
    if torch.compiler.is_compiling():
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)
    return _GatedGELU.apply(x)


def rms_normalise(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """x · scale / rms(x) over channels, the statistics in float32 or better.

    x `[B, h, w, d]`, scale `[B, 1, 1, d]`, or any two shapes of which the second broadcasts.
    """
    if torch.compiler.is_compiling():
        return (x * (full_precision(scale) * _inverse_rms(x, eps))).to(x.dtype)
    return _RMSNorm.apply(x, scale, eps)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


class _GatedGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value, gate = x.chunk(2, -1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        value, gate = x.chunk(2, -1)
        grad_x = torch.empty_like(x)
        grad_value, grad_gate = grad_x.chunk(2, -1)
        torch.mul(grad, F.gelu(gate), out=grad_value)
        torch.ops.aten.gelu_backward.grad_input(grad * value, gate, grad_input=grad_gate)
        return grad_x


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, scale, inverse)
        return (x * inverse).mul_(scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, inverse = ctx.saved_tensors
        product = full_precision(grad) * x  # once for both gradients
        along = (product * scale).sum(-1, keepdim=True)  # what grows x without turning it
        grad_x = (full_precision(grad) * scale).mul_(inverse)
        grad_x.addcmul_(full_precision(x), along * inverse**3, value=-1 / x.shape[-1])
        grad_scale = product.mul_(inverse).sum_to_size(scale.shape)
        return grad_x.to(x.dtype), grad_scale.to(scale.dtype), None
