"""Families that measure mixtures of many values: random projections, grey images."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from degradation.base import Device, Shape, diagonalisable
from degradation.channels import ChannelProduct
from degradation.family import Family
from degradation.hadamard import BlockHadamard
from degradation.mask import Mask
from degradation.matrix import DenseMatrix
from degradation.randomness import Draws


@dataclass(frozen=True)
class MatrixDegradation(Family):
    """Random projections (A.3.3): 2 to 128 Gaussian rows of unit norm, the number uniform."""

    local: ClassVar[bool] = False

    min_rows: int = 2
    max_rows: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.min_rows <= self.max_rows:
            given = f"{self.min_rows} and {self.max_rows}"
            raise ValueError(f"1 ≤ min_rows ≤ max_rows must hold, not {given}")

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> DenseMatrix:
        draws = Draws(seeds, device)
        counts = Draws(seeds).integers(self.min_rows, self.max_rows, (1,), "rows")[:, 0]
        matrix = draws.normal_rows(counts, self.max_rows, math.prod(image_shape), "matrix")
        lengths = torch.linalg.vector_norm(matrix, dim=-1, keepdim=True)
        matrix /= torch.where(lengths > 0, lengths, 1)
        return DenseMatrix(matrix, image_shape, copy=False)


@dataclass(frozen=True)
class Hadamard(Family):
    """Compressed sensing by random rows of a Hadamard transform of the image with random signs.

    ratio: measurements over values of the image, C·h·w. Signs and rows are each image's own; the
    number of rows, rounded and at least one, is the same.
    """

    local: ClassVar[bool] = False

    ratio: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], not {self.ratio}")

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> BlockHadamard:
        n = math.prod(image_shape)
        count, draws = max(1, round(self.ratio * n)), Draws(seeds, device)
        signs = 1 - 2 * (draws.uniform((n,), "signs") < 0.5).to(torch.int8)
        order = draws.uniform((n,), "rows").argsort(stable=True)
        return BlockHadamard(signs, order[:, :count].sort().values, image_shape)


_WEIGHTS = ("mean", "luma")
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Colourisation(Family):
    """The grey image is measured: as it is, or by another family.

    weights: "mean" of the channels, or "luma", which is of three. of: what measures the grey
    image, such as MotionBlur() for colourisation and de-blurring at once.
    """

    local: ClassVar[bool] = False

    weights: str = "mean"
    of: Family | None = None

    def __post_init__(self) -> None:
        if self.weights not in _WEIGHTS:
            raise ValueError(f"weights must be {' or '.join(_WEIGHTS)}, not {self.weights}")

    def structure(self, seed: int) -> Hashable:
        return self.of.structure(seed) if self.of else None

    def structures(self) -> tuple[Hashable, ...]:
        return self.of.structures() if self.of else (None,)

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> ChannelProduct:
        channels, grey = image_shape[0], (1, *image_shape[1:])
        if self.weights == "luma" and channels != 3:
            raise ValueError(f"weights=luma is of images of 3 channels, not {channels}")
        weights = _LUMA if self.weights == "luma" else (1 / channels,) * channels
        mixing = torch.tensor(weights).expand(len(seeds), 1, -1)
        if self.of is None:
            everything = Mask(torch.ones(1, *grey), grey).to(device, non_blocking=True)
            return ChannelProduct(mixing, everything.expand(len(seeds)))
        measured = self.of.sample(grey, structure, seeds, device)
        return ChannelProduct(mixing, diagonalisable(measured, "Colourisation"))
