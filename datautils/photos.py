"""The built-in photos: random crops of photographs that come with the project and its packages.

They need no download, so a first training run, the examples and the tests work anywhere. 263 free
photographs beside this file are for training; `freephotos-credits.md` has their authors and
licences. Held out are the colour photographs inside scikit-image and scikit-learn.
"""

import csv
import functools
import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from datautils.decode import to_tensor
from datautils.indexed import check_count
from runtime.files import inside

FREE_PHOTOS = Path(__file__).parent / "freephotos.zip"
# Colour photographs of scenes only: the packages also ship drawings, plots, pictures of
# microscopes and telescopes, and grey ones. Of the stereo pair `motorcycle_left/right.png` one
# view is enough. Their order decides which crop is which, so published figures depend on it.
HELDOUT = (
    "skimage/data/astronaut.png",
    "skimage/data/rocket.jpg",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_left.png",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
_DEFAULT_SIZE = {"train": 2**20, "heldout": 256}  # the order numbers the splits


class Photos(Dataset[tuple[Tensor, int]]):
    """Square crops of the built-in photographs, resized to `resolution`.

    A crop's side is log-uniform between `resolution` and the photograph's shorter side, its place
    uniform. Half of the training crops are mirrored. Crop i is a function of (split, i) alone. The
    n photographs that are large enough take turns (photograph i mod n). `size` is the number of
    crops (default 2^20 for "train", 256 for "heldout"). A photograph is decoded when its first crop
    is asked for, and then kept. No photograph is in both splits.

    Raises ValueError for an unknown split, a wrong size, a resolution that no photograph
    allows, and if the file or the packages that hold the photographs are missing.
    """

    num_classes = 0

    def __init__(self, resolution: int = 32, split: str = "train", size: int | None = None):
        if split not in _DEFAULT_SIZE:
            raise ValueError(f"unknown split {split!r} of the photos; known: train, heldout")
        check_count("size", size)
        sides = {name: min(size) for name, size in _sizes(split).items()}
        largest = max(sides.values())
        if type(resolution) is not int or not 1 <= resolution <= largest:
            raise ValueError(
                f"the {split} photos allow a resolution from 1 to {largest}, not {resolution!r}"
            )
        self.resolution, self.split = resolution, split
        self.size = _DEFAULT_SIZE[split] if size is None else size
        self._photos = [name for name, side in sides.items() if side >= resolution]

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
        levels = _pyramid(self._photos[index % len(self._photos)])
        width, height = levels[0].size
        u_side, u_left, u_top, u_mirror = _uniforms(self.split, index)
        side = _log_uniform(u_side, self.resolution, min(width, height))
        left = math.floor(u_left * (width - side + 1))
        top = math.floor(u_top * (height - side + 1))
        crop = _resized_crop(levels, left, top, side, self.resolution)
        mirrored = self.split == "train" and u_mirror < 0.5
        return to_tensor(ImageOps.mirror(crop) if mirrored else crop), -1


def _uniforms(split: str, index: int) -> list[float]:
    """Four numbers uniform in [0, 1) that are a function of (split, index).

    Taken from the generator's raw words: numpy keeps those the same in all of its versions, which
    it does not promise for its distributions.
    """
    key = np.array([index, list(_DEFAULT_SIZE).index(split)], dtype=np.uint64)
    return [(int(word) >> 11) * 2.0**-53 for word in np.random.Philox(key=key).random_raw(4)]


def _log_uniform(u: float, low: int, high: int) -> int:
    """The integer in [low, high], of uniform logarithm, that a u in [0, 1) picks."""
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
def _sizes(split: str) -> dict[str, tuple[int, int]]:
    """(width, height) of each photograph of a split, by its name. No pixel is decoded."""
    if split == "heldout":
        return {name: _open(name).size for name in HELDOUT}
    rows = csv.DictReader(io.StringIO(_free_photos("credits.csv").decode()))
    return {row["file"]: (int(row["width"]), int(row["height"])) for row in rows}


@functools.cache
def _pyramid(name: str) -> list[Image.Image]:
    """A photograph in RGB and its reductions by 2, 4, 8 ... down to a few pixels."""
    photo = _open(name).convert("RGB")
    depth = int(math.log2(min(photo.size)))
    return [photo] + [photo.reduce(2**level) for level in range(1, depth)]


def _open(name: str) -> Image.Image:
    """A photograph whose pixels are not decoded yet."""
    data = _locate(name).read_bytes() if name in HELDOUT else _free_photos(name)
    return Image.open(io.BytesIO(data))


def _free_photos(name: str) -> bytes:
    """A member of the file of the training photographs."""
    try:
        with zipfile.ZipFile(FREE_PHOTOS) as archive:
            return archive.read(name)
    except (OSError, zipfile.BadZipFile):
        raise ValueError(
            f"the built-in photos need {FREE_PHOTOS}, which is missing or damaged: take it from "
            "the project's repository"
        ) from None


def _locate(file: str) -> Path:
    """Path of a file inside an installed package."""
    package, _, rest = file.partition("/")
    if (path := inside(package, rest)) and path.is_file():
        return path
    name = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
    raise ValueError(f"the built-in photos need {file}: `pip install --upgrade {name}` brings it")
