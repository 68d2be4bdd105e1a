"""Non-leaking augmentation: flips and affine warps, which the network gets as nine numbers.

Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), appendix
F.2. As an image comes with its label, and a label of zeros means that nothing was done to it, the
network does not generate augmented images when it is sampled with zeros.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation import Draws

_XFLIP = 1e8  # multiplies the probability: every image may be mirrored, unless that is 0
_OCTAVES = 0.2  # standard deviation of the binary logarithms of scale and stretch
_SHIFT = 0.125  # standard deviation of the shift, in sides of the image
_TURNED = 0.5  # share of the stretched images whose axis is not the horizontal one

# The orthonormal low-pass filter of the wavelet sym6 (Daubechies, "Ten lectures on wavelets").
_SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_CENTRE = 5  # its largest coefficient: a pixel becomes the sample that this one falls on
_RIM = 3  # pixels that the filter reaches beyond the image on its way down


@dataclass(frozen=True)
class Parameters:
    """What is done to each image of a batch, `[B]` each, 0 where it is nothing, in this order.

    xflip, yflip: 1 to mirror left and right, top and bottom; scale: by 2^(0.2·scale); rotation:
    radians counter-clockwise; stretch: by 2^(0.2·stretch) along the line at the angle `axis`
    (radians counter-clockwise) and by the inverse across it; shift `[B, 2]`: right and down, in
    eighths of the image's sides.
    """

    xflip: Tensor
    yflip: Tensor
    scale: Tensor
    rotation: Tensor
    stretch: Tensor
    axis: Tensor
    shift: Tensor

    def labels(self) -> Tensor:
        """The label of the network `[B, 9]`, float32."""
        numbers = (
            self.xflip,
            self.yflip,
            self.scale,
            self.rotation.cos() - 1,
            self.rotation.sin(),
            self.stretch * self.axis.cos(),
            self.stretch * self.axis.sin(),
            *self.shift.unbind(1),
        )
        return torch.stack([number.float() for number in numbers], 1)

    def warped(self) -> Tensor:
        """Which images need more than a flip, bool `[B]`."""
        warps = torch.stack((self.scale, self.rotation, self.stretch, *self.shift.unbind(1)))
        return (warps != 0).any(0)

    def inverse(self, h: int, w: int) -> tuple[Tensor, Tensor]:
        """A `[B, 2, 2]` and b `[B, 2]`: a pixel at u is taken from A·u + b of the flipped image.

        u counts pixels to the right and down from the middle of the image. float64.
        """
        scale = (_OCTAVES * self.scale.double()).exp2()
        stretch = (_OCTAVES * self.stretch.double()).exp2()
        turn, axis = _turn(self.rotation.double()), _turn(self.axis.double())
        squeeze = torch.diag_embed(torch.stack((1 / stretch, stretch), 1))
        A = turn @ axis.mT @ squeeze @ axis / scale[:, None, None]
        pixels = _SHIFT * self.shift.double() * self.shift.new_tensor((w, h)).double()
        return A, -(A @ pixels[:, :, None]).squeeze(2)


def _turn(angle: Tensor) -> Tensor:
    """Rotation matrices `[B, 2, 2]`, clockwise where y points down."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), 1).unflatten(1, (2, 2))


def raw_numbers(draws: Draws) -> dict[str, Tensor]:
    """All random numbers of an augmentation by name, `[B]` or, of the shift, `[B, 2]`.

    Those that end in /gate decide whether the number takes effect.
    """
    raw = {name: draws.integers(0, 1, (), f"augment/{name}") for name in ("xflip", "yflip")}
    for name, shape in (("scale", ()), ("stretch", ()), ("shift", (2,))):
        raw[name] = draws.normal(shape, f"augment/{name}")
    for name in ("rotation", "axis", *(f"{field.name}/gate" for field in fields(Parameters))):
        raw[name] = draws.uniform((), f"augment/{name}")
    return raw


def parameters(raw: Mapping[str, Tensor], probability: float) -> Parameters:
    """Parameters from the numbers of `raw_numbers`, a pure function."""
    shares = {"xflip": _XFLIP * probability, "axis": _TURNED}
    values = {}
    for name in (field.name for field in fields(Parameters)):
        value = raw[name]
        if name in ("rotation", "axis"):
            value = (2 * value - 1) * math.pi
        acts = raw[f"{name}/gate"] < shares.get(name, probability)
        values[name] = torch.where(acts.view(-1, *[1] * (value.ndim - 1)), value, 0)
    return Parameters(**values)


def augment(images: Tensor, draws: Draws, probability: float) -> tuple[Tensor, Tensor]:
    """Images `[B, C, h, w]` in [-1, 1] to images, not clipped, and their labels `[B, 9]`.

    probability: of each operation, in [0, 1]; a flip that is applied mirrors half of the images.
    The left-right flip is applied always, but at 0 nothing is. Each image follows its own seed;
    with draws on the CPU a GPU is not waited for to learn which images to warp.
    """
    params = parameters(raw_numbers(draws), probability)
    return apply(images, params), params.labels().to(images.device)


def apply(images: Tensor, params: Parameters) -> Tensor:
    """Augmented images `[B, C, h, w]`; those that are not warped stay exact, flipped or not."""
    for dim, flip in ((3, params.xflip), (2, params.yflip)):
        flipped = (flip == 1).to(images.device)[:, None, None, None]
        images = torch.where(flipped, images.flip(dim), images)
    A, b = params.inverse(*images.shape[2:])
    part = params.warped().nonzero().squeeze(1)
    own = part.to(images.device)
    images[own] = warp(images[own], A[part].to(images.device), b[part].to(images.device))
    return images


def warp(images: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """Resample images `[B, C, h, w]` so that what was at A·u + b comes to u, see `inverse`.

    They are reflected at their borders (black beyond a whole reflected image), up-sampled by two,
    resampled bilinearly, and down-sampled by the same filter, which alone would be the identity.
    """
    h, w = images.shape[2:]
    dtype, device = images.dtype, images.device
    up_h, up_w = _up_sampling(h, dtype, device), _up_sampling(w, dtype, device)
    fine = up_h @ images @ up_w.T
    u = torch.stack(torch.meshgrid(_samples(w), _samples(h), indexing="xy"), -1).to(A)
    # In samples from the middle of the grid: a pixel's own sample lies half a sample before it.
    v = 2 * (u @ A.mT[:, None] + b[:, None, None]) - 0.5
    size = v.new_tensor((up_w.shape[0], up_h.shape[0]))
    grid = (2 * v / size).to(images)
    out = F.grid_sample(fine, grid, "bilinear", "zeros", align_corners=False)
    return _down_sampling(h, dtype, device) @ out @ _down_sampling(w, dtype, device).T


def _samples(n: int) -> Tensor:
    """Where the samples of n pixels and the rim lie, in pixels from the middle; float64."""
    count = 2 * (n + 2 * _RIM)
    return (torch.arange(count, dtype=torch.float64) - (count - 2) / 2) / 2


@functools.lru_cache(maxsize=16)
def _up_sampling(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Reflection at both ends, then up-sampling by two: a matrix `[2·(3n − 2), n]`.

    The reflection is the longest there is: a shorter one would depend on how far the other images
    of a batch are warped.
    """
    position = torch.arange(-(n - 1), 2 * n - 1)
    source = n - 1 - (n - 1 - position.abs()).abs()
    reflect = F.one_hot(source, n).double()
    return (2 * _filtering(len(position)).T @ reflect).to(device, dtype)


@functools.lru_cache(maxsize=16)
def _down_sampling(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Down-sampling by two and removal of the rim: a matrix `[n, 2·(n + 2·rim)]`."""
    return _filtering(n + 2 * _RIM)[_RIM:-_RIM].to(device, dtype)


def _filtering(n: int) -> Tensor:
    """Low-pass filter and down-sampling of 2n samples by two, black beyond: float64 `[n, 2n]`."""
    taps = torch.tensor(_SYM6, dtype=torch.float64) / math.sqrt(2)
    tap = torch.arange(2 * n) - 2 * torch.arange(n)[:, None] + _CENTRE
    return torch.where((tap >= 0) & (tap < len(taps)), taps[tap.clamp(0, len(taps) - 1)], 0)
