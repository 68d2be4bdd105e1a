"""Linear physics that know nothing of this project: what a user might bring."""

import torch
import torch.nn.functional as F
from helpers import gaussian
from torch import Tensor, nn

SHAPE = (3, 6, 4)


class Padded(nn.Module):
    """Blur with a kernel of its own, zeros beyond the border: a picture."""

    kernel: Tensor

    def __init__(self, seed: int = 0, stride: int = 1):
        super().__init__()
        kernel = 0.1 * gaussian(3, 3, seed=seed, dtype=torch.float32)
        kernel[1, 1] += 1
        self.register_buffer("kernel", kernel)
        self.stride = stride

    def A(self, x: Tensor) -> Tensor:
        weight = self.kernel.expand(x.shape[1], 1, 3, 3)
        return F.conv2d(x, weight, padding=1, stride=self.stride, groups=x.shape[1])

    def A_adjoint(self, y: Tensor) -> Tensor:
        weight, extra = self.kernel.expand(y.shape[1], 1, 3, 3), self.stride - 1
        return F.conv_transpose2d(
            y, weight, padding=1, stride=self.stride, output_padding=extra, groups=y.shape[1]
        )


class Rows:
    """A matrix, in numpy: nothing that autograd could follow."""

    def __init__(self, values: Tensor, shape: tuple[int, int, int] = SHAPE):
        self.values, self.shape = values.double().numpy(), shape

    def A(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.flatten(1).numpy() @ self.values.T).to(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.from_numpy(y.numpy() @ self.values).to(y).unflatten(1, self.shape)


class KSpace(nn.Module):
    """Some Fourier coefficients of every channel; the others are zero."""

    mask: Tensor

    def __init__(self, seed: int = 0):
        super().__init__()
        self.register_buffer("mask", (gaussian(*SHAPE[1:], seed=seed) > 0).float())

    def A(self, x: Tensor) -> Tensor:
        return self.mask * torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(self.mask * y, norm="ortho")
