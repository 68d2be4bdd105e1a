"""Families of masks: in-painting and out-painting (paper, A.3.1 and A.3.4, and common others)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from degradation.base import Device, Shape
from degradation.family import Family, check_span, uniform_between
from degradation.mask import Mask
from degradation.randomness import Draws

_LEAST_VISIBLE = 1e-4


class _Masks(Family):
    """Masks of each image, or one for all."""

    def masks(self, image_shape: Shape, seeds: Sequence[int]) -> Tensor:
        """`[B or 1, 1 or C, h, w]` on the CPU: their check would wait for a GPU."""
        raise NotImplementedError

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> Mask:
        operator = Mask(self.masks(image_shape, seeds), image_shape).to(device, non_blocking=True)
        return operator if len(operator) == len(seeds) else operator.expand(len(seeds))


@dataclass(frozen=True)
class MissingPatches(_Masks):
    """In-painting of scattered patches (A.3.1).

    Patches of side 2^k, k uniform from 0 to log2 of the image's shorter side, are each visible
    with a probability p uniform in (0, max_visible). Where no pixel or every pixel is visible,
    side, p and mask are drawn anew for that image.
    """

    max_visible: float = 0.1

    def __post_init__(self) -> None:
        if not _LEAST_VISIBLE <= self.max_visible <= 1:  # fewer would be redrawn for very long
            raise ValueError(
                f"max_visible must lie between {_LEAST_VISIBLE} and 1, not {self.max_visible}"
            )

    def masks(self, image_shape: Shape, seeds: Sequence[int]) -> Tensor:
        h, w = image_shape[1:]
        if h * w == 1:
            raise ValueError("an image of one pixel has no patches to hide")
        mask = torch.zeros(len(seeds), h, w)
        pending, attempt = torch.arange(len(seeds)), 0
        while len(pending):
            draws, stream = Draws([seeds[i] for i in pending.tolist()]), f"mask/{attempt}"
            side = 2 ** draws.integers(0, int(math.log2(min(h, w))), (1, 1), stream + "/side")
            p = self.max_visible * draws.uniform((1, 1), stream + "/p")
            patch = torch.arange(h)[:, None] // side * w + torch.arange(w) // side  # [B, h, w]
            lot = draws.uniform((h * w,), stream).gather(1, patch.flatten(1)).unflatten(1, (h, w))
            mask[pending] = (lot < p).float()
            visible = (lot < p).flatten(1)
            pending = pending[visible.all(1) | ~visible.any(1)]
            attempt += 1
        return mask.unsqueeze(1)


@dataclass(frozen=True)
class Box(_Masks):
    """Out-painting: one rectangle, between two distinct cuts of each axis, is visible (A.3.4)."""

    def masks(self, image_shape: Shape, seeds: Sequence[int]) -> Tensor:
        draws, (_, h, w) = Draws(seeds), image_shape
        rows, columns = _interval(draws, h, "h"), _interval(draws, w, "w")
        return rows[:, None, :, None] & columns[:, None, None, :]


@dataclass(frozen=True)
class MissingBox(_Masks):
    """In-painting of one rectangle, the complement of `Box`."""

    def masks(self, image_shape: Shape, seeds: Sequence[int]) -> Tensor:
        return ~Box().masks(image_shape, seeds)


def _interval(draws: Draws, n: int, axis: str) -> Tensor:
    """Indices between two distinct cut positions out of 0..n, bool `[B, n]`."""
    first = draws.integers(0, n, (1,), f"box/{axis}/first")
    second = draws.integers(0, n - 1, (1,), f"box/{axis}/second")
    second = second + (second >= first)
    index = torch.arange(n)
    return (index >= torch.minimum(first, second)) & (index < torch.maximum(first, second))


@dataclass(frozen=True)
class RandomPixels(_Masks):
    """In-painting of scattered pixels: each is visible with a probability p of its image.

    visible: p, or two numbers that p is uniform between. Where chance leaves no pixel visible, or
    none hidden, one is.
    """

    visible: tuple[float, ...] = (0.05, 0.5)

    def __post_init__(self) -> None:
        check_span("visible", self.visible, "in (0, 1)", all(0 < p < 1 for p in self.visible))

    def masks(self, image_shape: Shape, seeds: Sequence[int]) -> Tensor:
        h, w = image_shape[1:]
        if h * w == 1:
            raise ValueError("an image of one pixel has no pixels to hide")
        draws = Draws(seeds)
        p = uniform_between(draws, self.visible, "visible")
        lot = draws.uniform((h * w,), "pixels")
        mask = (lot < p[:, None]).float()
        mask.scatter_(1, lot.argmin(1, keepdim=True), 1.0)
        mask.scatter_(1, lot.argmax(1, keepdim=True), 0.0)
        return mask.view(-1, 1, h, w)


@dataclass(frozen=True)
class CentreBox(_Masks):
    """In-painting of a box in the middle, the same for every image.

    share: sides of the box over those of the image, rounded to whole pixels, at least one.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), not {self.share}")

    def masks(self, image_shape: Shape, seeds: Sequence[int]) -> Tensor:
        h, w = image_shape[1:]
        rows, columns = max(1, round(self.share * h)), max(1, round(self.share * w))
        if (rows, columns) == (h, w):
            raise ValueError(f"a box of share={self.share} hides all of an image of {h}×{w}")
        mask = torch.ones(1, 1, h, w)
        top, left = (h - rows) // 2, (w - columns) // 2
        mask[..., top : top + rows, left : left + columns] = 0
        return mask


_SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class HalfImage(_Masks):
    """Out-painting of a half: `side` is the one that is missing, or "random" for any of the four.

    Of an odd number of pixels the missing half has the fewer.
    """

    side: str = "random"

    def __post_init__(self) -> None:
        if self.side not in (*_SIDES, "random"):
            raise ValueError(f"side must be {', '.join(_SIDES)} or random, not {self.side}")

    def masks(self, image_shape: Shape, seeds: Sequence[int]) -> Tensor:
        h, w = image_shape[1:]
        if min(h, w) < 2:
            raise ValueError(f"an image of {h}×{w} has no halves")
        masks = torch.ones(len(_SIDES), 1, h, w)
        masks[0, ..., : w // 2] = 0
        masks[1, ..., w - w // 2 :] = 0
        masks[2, ..., : h // 2, :] = 0
        masks[3, ..., h - h // 2 :, :] = 0
        if self.side == "random":
            return masks[Draws(seeds).integers(0, 3, (), "side")]
        return masks[[_SIDES.index(self.side)]]


@dataclass(frozen=True, eq=False)
class FixedMask(_Masks):
    """One given mask for every image: `[1 or C, h, w]`, 1 (or True) = visible."""

    mask: Tensor

    def __post_init__(self) -> None:
        if not self.mask.any():
            raise ValueError("mask is zero everywhere: at least one pixel must be visible")

    def masks(self, image_shape: Shape, seeds: Sequence[int]) -> Tensor:
        return self.mask[None]
