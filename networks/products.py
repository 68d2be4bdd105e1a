"""Linear maps without bias, by oneDNN on a CPU.

PyTorch hands float32 products to MKL, whose AVX-512 kernels run on its maker's processors only;
those of oneDNN run on all that have it (docs/performance.md has what that brings). Gradients are
products too. There are no second derivatives.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_HAS_KERNELS = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_LEAST = 2**19  # multiplications: below, the call costs more than the kernel saves
_CONVOLVED = 20480  # values: for more, and several threads, PyTorch leaves convolutions to oneDNN


class Linear(nn.Linear):
    """`nn.Linear` without bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ: x `[..., inputs]`, weight `[outputs, inputs]`; autocast casts both."""
    if not _suits(x, weight):
        return F.linear(x, weight)
    product = _product if torch.compiler.is_compiling() else _Product.apply
    return product(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        _HAS_KERNELS
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.ndim > 1
        and x.numel() * len(weight) >= _LEAST
    )


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ of matrices."""
    if not weight.T.is_contiguous():  # with gaps between its rows there is no fast kernel
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, None, "none", [], "")


def _multiply_transposed(x: Tensor, y: Tensor) -> Tensor:
    """xᵀ · y of matrices; of many rows as the gradient of a 1×1 convolution: nothing is moved."""
    many = len(x) > y.shape[1] and min(x.numel(), y.numel()) > _CONVOLVED
    if not many or torch.get_num_threads() == 1:
        wide = x.shape[1] > y.shape[1]  # the first of the two is copied
        return _multiply(y.T, x.T).T.contiguous() if wide else _multiply(x.T, y.T)
    x, y = (rows[None, None].movedim(-1, 1) for rows in (x, y))
    weight = x.new_empty(x.shape[1], y.shape[1], 1, 1)
    mask = False, True, False
    return torch.ops.aten.convolution_backward(
        x, y, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, mask
    )[1][:, :, 0, 0]


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor | None = None) -> None:
    """Each factor for the gradient of the other, where that is wanted."""
    x, weight = inputs
    x_wanted, weight_wanted = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if weight_wanted else None, weight if x_wanted else None)


def _gradients(
    ctx: Any, grad: Tensor, multiply: Callable, multiply_transposed: Callable
) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    grad_x = None if weight is None else multiply(grad, weight.contiguous().T)
    grad_weight = None if x is None else multiply_transposed(grad, x)
    return grad_x, grad_weight


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        _keep(ctx, (x, weight))
        return _multiply(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return _gradients(ctx, grad, _multiply, _multiply_transposed)


# For a compiler each is one opaque operation, in whose place it can put no kernel of its own.
@torch.library.custom_op("invfusion::product", mutates_args=())
def _product(x: Tensor, weight: Tensor) -> Tensor:
    return _multiply(x, weight)


@_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("invfusion::product_transposed", mutates_args=())
def _product_transposed(x: Tensor, y: Tensor) -> Tensor:
    return _multiply_transposed(x, y)


@_product_transposed.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], y.shape[1])


def _opaque_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return _gradients(ctx, grad, _product, _product_transposed)


_product.register_autograd(_opaque_gradients, setup_context=_keep)
