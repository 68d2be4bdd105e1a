"""In-painting: every pixel is either seen or not."""

import torch
from torch import Tensor

from degradation.base import Device, Diagonalisable, Shape, full_precision, regularised_gain, scaled


class Mask(Diagonalisable):
    """Keep the visible pixels and zero the others; M = C·h·w, s is the mask itself.

    mask: `[B, 1 or C, h, w]`, 1 (or True) = visible; one channel is shared by all.
    """

    tensors = ("mask",)

    def __init__(self, mask: Tensor, image_shape: Shape | None = None):
        shape = c, h, w = image_shape or (3, mask.shape[-2], mask.shape[-1])
        if mask.ndim == 4 and mask.shape[2:] != (h, w):
            size = "{}×{} pixels (height × width)".format(*mask.shape[2:])
            raise ValueError(f"the mask has {size}, and the images have {h}×{w}")
        if mask.ndim != 4 or mask.shape[1] not in (1, c):
            wanted, found = f"[B, 1 or {c}, {h}, {w}]", tuple(mask.shape)
            raise ValueError(f"a mask for images {shape} must be {wanted}, not {found}")
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("a mask holds 0 (hidden) and 1 (visible) only")
        self.image_shape = shape
        self.mask = mask if mask.is_floating_point() else mask.float()

    @property
    def s(self) -> Tensor:
        return self.flatten(self.mask.expand(-1, *self.image_shape))

    def Vt(self, x: Tensor) -> Tensor:
        return scaled(self.checked(x), self.mask).flatten(-3)

    def V(self, z: Tensor) -> Tensor:
        return scaled(self.unflatten(full_precision(z)), self.mask)

    def Ut(self, y: Tensor) -> Tensor:
        return self.V(y).flatten(-3)

    def U(self, z: Tensor) -> Tensor:
        return self.Ut(z)

    def H(self, x: Tensor) -> Tensor:
        return self.Vt(x)

    def H_adjoint(self, y: Tensor) -> Tensor:
        return self.V(y)

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        gain = regularised_gain(self.mask, noise_level)
        return scaled(self.unflatten(full_precision(y)), gain)

    @property
    def rows(self) -> Tensor:
        return self.s > 0

    def measurement_image(self, y: Tensor) -> Tensor:
        return self.unflatten(y)


class NullOperator(Diagonalisable):
    """No measurement at all: one row, which does not exist. H†y and Hᵀy are zero."""

    tensors = ("zero",)

    def __init__(self, batch: int, image_shape: Shape, device: Device = "cpu"):
        self.image_shape = image_shape
        self.zero = torch.zeros(batch, 1, device=device)

    @property
    def s(self) -> Tensor:
        return self.zero

    def Vt(self, x: Tensor) -> Tensor:
        # Times zero rather than new zeros: all parameters take part in the backward pass.
        return scaled(self.flatten(x)[..., :1], self.zero)

    def V(self, z: Tensor) -> Tensor:
        z = scaled(full_precision(z), self.zero)
        return self.unflatten(z.expand(*z.shape[:-1], self.numel))

    def Ut(self, y: Tensor) -> Tensor:
        return scaled(full_precision(y), self.zero)

    def U(self, z: Tensor) -> Tensor:
        return self.Ut(z)

    @property
    def rows(self) -> Tensor:
        return torch.zeros_like(self.zero, dtype=torch.bool)
