"""The built-in photos: random crops of photographs that come inside two Python packages.

They need no download, so a first training run, the examples and the tests work anywhere. Seven
colour photographs of different scenes are far too few for a result worth publishing, but crops at
all scales have the statistics of natural images: enough to see a method learn.
"""

import functools
import importlib.util
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datautils.fit import check_count

# Colour photographs only: the packages also ship drawings, plots, microscopy and grey images. Of
# the stereo pair `motorcycle_left/right.png` one view is enough.
_SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/coffee.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/rocket.jpg",
        "sklearn/datasets/images/flower.jpg",
    ),
    "heldout": (
        "skimage/data/chelsea.png",
        "sklearn/datasets/images/china.jpg",
    ),
}
_COLOUR_ORDERS = [list(order) for order in itertools.permutations(range(3))]
_DEFAULT_SIZE = {"train": 2**20, "heldout": 256}
_PIP_NAME = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


class Photos(Dataset[tuple[Tensor, int]]):
    """Square crops of the built-in photographs, resized to `resolution`.

    A crop's side is log-uniform between `resolution` and the photograph's shorter side, its place
    uniform. Crop i is a function of (split, i) alone, and the photographs take turns (photograph
    i mod n), so that any number of crops is spread evenly over them. `size` is the number of crops
    (default 2^20 for "train", 256 for "heldout"). With `augment` (default in training only) crops
    are mirrored, turned, their colours permuted and negated, contrast and brightness varied: five
    photographs alone would teach their own colours. The photographs of the splits are different.

    Raises ValueError for an unknown split, a resolution beyond the smallest photograph (or below
    1), a size or an augment that is none, and where the packages that hold the photographs are not
    installed.
    """

    num_classes = 0

    def __init__(
        self,
        resolution: int = 32,
        split: str = "train",
        size: int | None = None,
        augment: bool | None = None,
    ):
        if split not in _SPLITS:
            raise ValueError(f"unknown split {split!r} of the photos; known: {', '.join(_SPLITS)}")
        check_count("size", size)
        if augment not in (None, True, False):
            raise ValueError(f"augment must be true or false, not {augment!r}")
        self.resolution = resolution
        self.split = split
        self.name = f"photos{resolution}-{split}"
        self.size = _DEFAULT_SIZE[split] if size is None else size
        self.augment = split == "train" if augment is None else augment
        self._photos = [_pyramid(file) for file in _SPLITS[split]]
        largest = min(min(levels[0].size) for levels in self._photos)
        if type(resolution) is not int or not 1 <= resolution <= largest:
            raise ValueError(
                f"the {split} photos allow a resolution from 1 to {largest}, not {resolution!r}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return 3, self.resolution, self.resolution

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Crop `index` as uint8 `[3, resolution, resolution]`, and the label -1 (no class)."""
        if not 0 <= index < self.size:
            raise IndexError(f"crop {index} of {self.size}")
        levels = self._photos[index % len(self._photos)]
        width, height = levels[0].size
        u_side, u_left, u_top, *rest = _uniforms(self.split, index)
        side = _log_uniform(u_side, self.resolution, min(width, height))
        left = math.floor(u_left * (width - side + 1))
        top = math.floor(u_top * (height - side + 1))
        crop = _resized_crop(levels, left, top, side, self.resolution)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        return (_vary(pixels, rest) if self.augment else pixels).contiguous(), -1


def _uniforms(split: str, index: int) -> list[float]:
    """Ten numbers uniform in [0, 1) that are a function of (split, index).

    Taken from the generator's raw words: numpy keeps those the same in all of its versions, which
    it does not promise for its distributions.
    """
    key = np.array([index, list(_SPLITS).index(split)], dtype=np.uint64)
    return [(int(word) >> 11) * 2.0**-53 for word in np.random.Philox(key=key).random_raw(10)]


def _vary(pixels: Tensor, u: Sequence[float]) -> Tensor:
    """Mirror, turn, permute the colours, negate, and change contrast and brightness, uint8."""
    mirror, turn, transpose, order, negate, contrast, brightness = u
    if mirror < 0.5:
        pixels = pixels.flip(-1)
    if turn < 0.5:
        pixels = pixels.flip(-2)
    if transpose < 0.5:
        pixels = pixels.mT
    pixels = pixels[_COLOUR_ORDERS[int(order * len(_COLOUR_ORDERS))]]
    values = pixels.float() / 127.5 - 1
    values = -values if negate < 0.5 else values
    values = values * 2 ** (2 * contrast - 1) + 1.2 * brightness - 0.6
    return (values * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def _log_uniform(u: float, low: int, high: int) -> int:
    """The integer in [low, high] that a u in [0, 1) picks when its logarithm is uniform."""
    return min(high, math.floor(low * ((high + 1) / low) ** u))


def _resized_crop(
    levels: Sequence[Image.Image], left: int, top: int, side: int, resolution: int
) -> Image.Image:
    """The square crop of a photograph at full-size coordinates, resized to `resolution`.

    It is read from a level of the pyramid that leaves a reduction by 2 to 4 to the last resize:
    less would let the aliasing of the pyramid's cheap box filter show, more would take longer.
    """
    level = min(max(0, int(math.log2(side / resolution)) - 1), len(levels) - 1)
    scale = 2**level
    box = (left / scale, top / scale, (left + side) / scale, (top + side) / scale)
    return levels[level].resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)


@functools.cache
def _pyramid(file: str) -> list[Image.Image]:
    """A photograph in RGB and its reductions by 2, 4, 8 ... down to a few pixels."""
    with Image.open(_locate(file)) as image:
        photo = image.convert("RGB")
    depth = int(math.log2(min(photo.size)))
    return [photo] + [photo.reduce(2**level) for level in range(1, depth)]


def _locate(file: str) -> Path:
    """Path of a file inside an installed package, without importing it (which takes seconds)."""
    package, _, inside = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / inside
        if path.is_file():
            return path
    name = _PIP_NAME[package]
    raise ValueError(f"the built-in photos need {file}: `pip install --upgrade {name}` brings it")
