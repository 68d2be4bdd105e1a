"""Random families of operators (paper, A.3). Operator i depends on its own seed alone."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from degradation.base import Degradation
from degradation.convolution import StridedConvolution
from degradation.mask import Mask, NullOperator
from degradation.matrix import DenseMatrix
from degradation.motion import motion_kernels
from degradation.randomness import Draws

Shape = tuple[int, int, int]
Device = torch.device | str


@dataclass(frozen=True)
class Family:
    """A distribution over operators.

    What must be equal for operators to share a batch is the *structure*; the rest is content.
    """

    def structure(self, seed: int) -> Hashable:
        """The structure that a seed draws, such as a stride."""
        return None

    def structures(self) -> tuple[Hashable, ...]:
        """All structures of the family."""
        return (None,)

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> Degradation:
        """A batch of operators of this structure, one for each seed."""
        raise NotImplementedError

    def check(self, image_shape: Shape) -> None:
        """Raise ValueError where an operator of the family does not exist for this shape."""
        for structure in self.structures():
            self.sample(image_shape, structure, [0])


@dataclass(frozen=True)
class MissingPatches(Family):
    """In-painting of scattered patches (A.3.1).

    Patches of side 2^k, k uniform from 0 to log2 of the image's shorter side, are each visible
    with a probability p uniform in (0, max_visible). Where no pixel or every pixel is visible,
    side, p and mask are drawn anew for that image.
    """

    max_visible: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.max_visible <= 1:
            raise ValueError(f"max_visible must lie in (0, 1], not {self.max_visible}")

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> Mask:
        h, w = image_shape[1:]
        if h * w == 1:
            raise ValueError("an image of one pixel has no patches to hide")
        mask = torch.zeros(len(seeds), h, w)
        pending = torch.arange(len(seeds))
        attempt = 0
        while len(pending):
            drawn = self._masks([seeds[i] for i in pending.tolist()], (h, w), f"mask/{attempt}")
            mask[pending] = drawn
            visible = drawn.flatten(1).mean(1)
            pending = pending[(visible == 0) | (visible == 1)]
            attempt += 1
        return Mask(mask.unsqueeze(1).to(device), image_shape)

    def _masks(self, seeds: Sequence[int], size: tuple[int, int], stream: str) -> Tensor:
        h, w = size
        draws = Draws(seeds)
        side = 2 ** draws.integers(0, int(math.log2(min(h, w))), (1, 1), stream + "/side")
        p = self.max_visible * draws.uniform((1, 1), stream + "/p")
        patch = torch.arange(h)[:, None] // side * w + torch.arange(w) // side  # [B, h, w]
        lot = draws.uniform((h * w,), stream)
        return (lot.gather(1, patch.flatten(1)).unflatten(1, size) < p).float()


@dataclass(frozen=True)
class Box(Family):
    """Out-painting: one rectangle, between two distinct cuts of each axis, is visible (A.3.4)."""

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> Mask:
        draws = Draws(seeds)
        rows, columns = (
            _interval(draws, n, axis) for n, axis in zip(image_shape[1:], "hw", strict=True)
        )
        return Mask((rows[:, None, :, None] & columns[:, None, None, :]).to(device), image_shape)


@dataclass(frozen=True)
class MissingBox(Family):
    """In-painting of one rectangle, the complement of `Box`."""

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> Mask:
        return Mask(1 - Box().sample(image_shape, None, seeds, device).mask, image_shape)


def _interval(draws: Draws, n: int, axis: str) -> Tensor:
    """Indices between two distinct cut positions out of 0..n, bool `[B, n]`."""
    first = draws.integers(0, n, (1,), f"box/{axis}/first")
    second = draws.integers(0, n - 1, (1,), f"box/{axis}/second")
    second = second + (second >= first)
    index = torch.arange(n)
    return (index >= torch.minimum(first, second)) & (index < torch.maximum(first, second))


@dataclass(frozen=True)
class MotionBlur(Family):
    """Strided motion blur (A.3.2): a random path of the hand, smoothed by a Gaussian of the stride.

    Kernels have half the size of the image and sum to 1; the stride is the structure.
    """

    strides: tuple[int, ...] = (2, 4, 8)

    def structure(self, seed: int) -> int:
        return _choice(seed, "stride", self.strides)

    def structures(self) -> tuple[int, ...]:
        return self.strides

    def sample(
        self, image_shape: Shape, structure: int, seeds: Sequence[int], device: Device = "cpu"
    ) -> StridedConvolution:
        kernel = self.kernels(image_shape, structure, seeds)
        return StridedConvolution(kernel.to(device), structure, image_shape)

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        """The kernels of `sample`, `[B, h // 2, w // 2]` on the CPU."""
        size = (image_shape[1] // 2, image_shape[2] // 2)
        return motion_kernels(Draws(seeds), size, smooth=float(structure))


@dataclass(frozen=True)
class SRConv(Family):
    """Strided convolution with a white Gaussian kernel of side 2·stride.

    The kernel is normalised by the sum of its magnitudes: its plain sum can be near zero.
    """

    strides: tuple[int, ...] = (2, 4, 8)

    def structure(self, seed: int) -> int:
        return _choice(seed, "stride", self.strides)

    def structures(self) -> tuple[int, ...]:
        return self.strides

    def sample(
        self, image_shape: Shape, structure: int, seeds: Sequence[int], device: Device = "cpu"
    ) -> StridedConvolution:
        kernel = self.kernels(image_shape, structure, seeds)
        return StridedConvolution(kernel.to(device), structure, image_shape)

    def kernels(self, image_shape: Shape, structure: int, seeds: Sequence[int]) -> Tensor:
        """The kernels of `sample`, `[B, 2·stride, 2·stride]` on the CPU."""
        kernel = Draws(seeds).normal((2 * structure, 2 * structure), "kernel")
        return kernel / kernel.abs().sum((-2, -1), keepdim=True)


@dataclass(frozen=True)
class MatrixDegradation(Family):
    """Random projections (A.3.3): 2 to 128 Gaussian rows of unit norm, the number uniform."""

    min_rows: int = 2
    max_rows: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.min_rows <= self.max_rows:
            raise ValueError(
                f"1 ≤ min_rows ≤ max_rows must hold, not {self.min_rows} and {self.max_rows}"
            )

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> DenseMatrix:
        draws = Draws(seeds, device)
        counts = Draws(seeds).integers(self.min_rows, self.max_rows, (1,), "rows")[:, 0].to(device)
        rows = draws.normal_rows(counts, math.prod(image_shape), "matrix")
        matrix = torch.zeros(len(seeds), self.max_rows, rows.shape[1], device=device)
        exists = torch.arange(self.max_rows, device=device) < counts[:, None]
        matrix[exists] = torch.nn.functional.normalize(rows, dim=-1)
        return DenseMatrix(matrix, image_shape)


@dataclass(frozen=True)
class NoDegradation(Family):
    """No measurement: restoring is then plain generation."""

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> NullOperator:
        return NullOperator(len(seeds), image_shape, device)


@dataclass(frozen=True)
class RandomDegradation(Family):
    """The training mixture of the paper: one of its members, uniformly."""

    members: tuple[Family, ...] = field(
        default_factory=lambda: (
            MotionBlur(),
            MissingPatches(),
            MatrixDegradation(),
            NoDegradation(),
        )
    )

    def structure(self, seed: int) -> tuple[int, Hashable]:
        member = _choice(seed, "member", tuple(range(len(self.members))))
        return member, self.members[member].structure(seed)

    def structures(self) -> tuple[tuple[int, Hashable], ...]:
        return tuple((i, inner) for i, m in enumerate(self.members) for inner in m.structures())

    def sample(
        self,
        image_shape: Shape,
        structure: tuple[int, Any],
        seeds: Sequence[int],
        device: Device = "cpu",
    ) -> Degradation:
        member, inner = structure
        return self.members[member].sample(image_shape, inner, seeds, device)


def _choice(seed: int, stream: str, options: tuple) -> Any:
    return options[int(Draws([seed]).integers(0, len(options) - 1, (), stream))]


FAMILIES: dict[str, type[Family]] = {
    family.__name__: family
    for family in (
        MissingPatches,
        Box,
        MissingBox,
        MotionBlur,
        SRConv,
        MatrixDegradation,
        NoDegradation,
        RandomDegradation,
    )
}


def get_family(name: str) -> Family:
    """The family of a command-line name: `MotionBlur` or `degradation.MotionBlur`.

    Raises ValueError with the known names.
    """
    try:
        return FAMILIES[name.removeprefix("degradation.")]()
    except KeyError:
        known = ", ".join(f"degradation.{known}" for known in FAMILIES)
        raise ValueError(f"unknown degradation '{name}'; known are {known}") from None
