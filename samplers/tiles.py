"""A photograph larger than the network: its denoiser works on overlapping tiles of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from degradation import Mask, NullOperator, Problem, ValidConvolution, ValidRegion
from samplers.base import Denoiser, prepared

TileBlur = ValidConvolution | ValidRegion


class Tiling:
    """Tiles of `side` half a tile apart that cover an image, the last ones flush with its border.

    All begin at multiples of `stride`; tile t of T counts along the rows of tiles. Raises
    ValueError if the image is smaller than a tile, or if the stride does not divide all sides.
    """

    def __init__(self, size: tuple[int, int], side: tuple[int, int], stride: int = 1):
        if any(n < m for n, m in zip(size, side, strict=True)):
            raise ValueError(
                f"{size[0]}×{size[1]} pixels (height × width) hold no tile of {side[0]}×{side[1]}"
            )
        if any(n % stride for n in (*size, *side)):
            raise ValueError(
                f"stride {stride} must divide the sides of the image, {size[0]}×{size[1]}, and of "
                f"the tiles, {side[0]}×{side[1]}"
            )
        self.size, self.side = size, side
        self.tops, self.lefts = (_starts(n, m, stride) for n, m in zip(size, side, strict=True))

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def cut(self, x: Tensor, stride: int = 1) -> Tensor:
        """Images `[B, C, h/s, w/s]`, sub-sampled by `stride`, to their tiles `[B·T, C, ...]`."""
        h, w = (m // stride for m in self.side)
        tiles = [
            x[..., top // stride :, left // stride :][..., :h, :w]
            for top, left in product(self.tops, self.lefts)
        ]
        return torch.stack(tiles, 1).flatten(0, 1)

    def blend(self, tiles: Tensor) -> Tensor:
        """Tiles `[B·T, C, h, w]` to images: their mean, weighted towards the middle of a tile."""
        window = self.window().to(tiles)
        total = self._add(window.expand(len(self), 1, *self.side))
        parts = self.cut(total)  # what the weights of each pixel of a tile add up to
        weights = (window / parts).repeat(len(tiles) // len(self), 1, 1, 1)
        return self._add(weights * tiles)

    def window(self) -> Tensor:
        """Weights `[h, w]`, positive, smooth, and nearly 0 at the border: squared sines."""
        rows, columns = (
            torch.sin(math.pi * (torch.arange(m) + 0.5) / m).square() for m in self.side
        )
        return rows[:, None] * columns

    def _add(self, tiles: Tensor) -> Tensor:
        """Tiles added up where they overlap, `[B·T, C, h, w]` to `[B, C, H, W]`."""
        tiles = tiles.unflatten(0, (-1, len(self)))
        image = tiles.new_zeros(len(tiles), tiles.shape[2], *self.size)
        for t, (top, left) in enumerate(product(self.tops, self.lefts)):
            image[..., top : top + self.side[0], left : left + self.side[1]] += tiles[:, t]
        return image


def _starts(n: int, m: int, stride: int) -> tuple[int, ...]:
    """First pixels of tiles of length m that cover n pixels, at multiples of the stride."""
    step = max(stride, m // 2 // stride * stride)
    return (*range(0, n - m, step), n - m)


def tile_problems(problem: Problem, tiling: Tiling, blur: TileBlur | None = None) -> Problem:
    """What each tile alone knows of a problem: B problems of images to B·T exact ones of tiles.

    Of a mask that is what the tile shows. Of a blur it is the samples that depend on pixels of the
    tile alone: `blur`, a batch of one, is their operator. Raises ValueError for other operators.
    """
    whole, count = problem.degradation, len(problem) * len(tiling)
    channels = whole.image_shape[0]
    picture = whole.measurement_image(problem.y)
    operator: NullOperator | Mask | TileBlur
    if isinstance(whole, NullOperator):
        operator = NullOperator(count, (channels, *tiling.side), problem.y.device)
        y = torch.zeros(count, 1).to(problem.y)
    elif isinstance(whole, Mask):
        operator = Mask(tiling.cut(whole.mask), (channels, *tiling.side))
        y = tiling.cut(whole.unflatten(problem.y)).flatten(1)
    elif blur is not None and picture is not None:
        operator = blur.expand(count)
        y = tiling.cut(picture, tiling.size[0] // picture.shape[-2]).flatten(1) * operator.rows
    else:
        raise ValueError(f"no tile alone knows a part of a measurement by {type(whole).__name__}")
    labels = problem.class_labels
    return Problem(
        operator,
        y,
        problem.levels.repeat_interleave(len(tiling)),
        None if labels is None else labels.repeat_interleave(len(tiling)),
    )


class Tiled:
    """A denoiser of images of any size: one of tiles, run on all of them at once and blended.

    Every sampler works on the whole image, so neighbouring tiles see the same noise and agree.
    With a single tile it is the denoiser itself. batch: tiles in one call of it.

    project: for y without noise. A tile leaves out the samples of a blur that see beyond it, and
    neighbours need not agree; E[x0 | x, y] lies in {x: Hx = y}, so a projection of the blended
    estimate can only bring it nearer.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tiling: Tiling,
        batch: int,
        blur: TileBlur | None = None,
        project: bool = False,
        progress: Callable[[], object] = lambda: None,
    ):
        self.denoiser, self.tiling, self.batch, self.blur = denoiser, tiling, batch, blur
        self.project = project and len(tiling) > 1
        self.progress = progress

    def __call__(self, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        """x `[B, C, H, W]`, sigma a number or `[B]`; the estimate `[B, C, H, W]` of x0."""
        count = len(self.tiling)
        noise = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        tiles = self.tiling.cut(x).split(self.batch)
        levels = noise.repeat_interleave(count).split(self.batch)
        labels: Sequence[Tensor | None] = [None] * len(tiles)
        if problem.class_labels is not None:
            labels = problem.class_labels.repeat_interleave(count).split(self.batch)
        problems = self.prepare(problem).prepared.problems
        estimates = []
        for tile, level, label, local in zip(tiles, levels, labels, problems, strict=True):
            estimates.append(self.denoiser(tile, level, local.with_classes(label)))
            self.progress()
        estimate = self.tiling.blend(torch.cat(estimates))
        return problem.project(estimate) if self.project else estimate

    def prepare(self, problem: Problem) -> Problem:
        """The problem with those of its tiles, in batches."""
        if isinstance(problem.prepared, _Tiles) and problem.prepared.owner is self:
            return problem
        local = problem
        if len(self.tiling) > 1:
            local = tile_problems(problem, self.tiling, self.blur)
        starts = range(0, len(local), self.batch)
        parts = [local] if len(starts) == 1 else [local[i : i + self.batch] for i in starts]
        return replace(problem, prepared=_Tiles(self, [prepared(self.denoiser, p) for p in parts]))


class _Tiles(NamedTuple):
    owner: Tiled
    problems: list[Problem]
