"""Data sets with an index: pictures of all sizes become images of one shape when they are read."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datautils.decode import centre_crop, decode_image, resize, to_tensor
from runtime.errors import DataError

SPLITS = ("train", "heldout", "all")


class IndexedImages(Dataset[tuple[Tensor, int]], ABC):
    """Items are (uint8 image [3, h, w], label or -1), of one shape.

    `crop` is the side in pixels of the square cut out of the middle, `size` the side after resizing
    by Lanczos; `size` alone resizes the largest square. With neither all pictures must have the
    shape of the first one. A subclass sets `labels` and `num_classes`. Raises ValueError for an
    unknown split, and for another option that is no count.
    """

    num_classes: int
    labels: np.ndarray  # int32 [images], -1 for none

    def __init__(self, split: str, size: int | None, crop: int | None, heldout: int | None):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        for name, value in {"size": size, "crop": crop, "heldout": heldout}.items():
            check_count(name, value)
        self.split, self.size, self.crop, self.heldout = split, size, crop, heldout
        side = size or crop
        self._shape = None if side is None else (3, side, side)

    @property
    def description(self) -> dict[str, Any]:
        """What images these are and what was done to them, for a record in JSON."""
        names = "split", "size", "crop", "num_classes"
        return {name: getattr(self, name) for name in names} | {"count": len(self)}

    @abstractmethod
    def picture(self, index: int) -> tuple[bytes, str]:
        """The bytes of image `index`, and how a message names it. Raises DataError."""

    def _part(self, count: int, where: object) -> range:
        """Which of `count` images are this split's; heldout=N holds out the last N of them."""
        if self.split == "all" or self.heldout is None:
            return range(count)
        if self.heldout >= count:
            raise ValueError(
                f"heldout={self.heldout} must leave images in both splits, and {where} has {count}"
            )
        first = count - self.heldout
        return range(first) if self.split == "train" else range(first, count)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image; without size and crop, of the first."""
        if self._shape is None:
            _, height, width = self._fitted(*self.picture(0)).shape
            self._shape = (3, height, width)
        return self._shape

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image `index` and its label. Raises IndexError, and DataError for a broken image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shape, (data, where) = self.image_shape, self.picture(index)
        image = self._fitted(data, where)
        if image.shape != shape:
            raise DataError(
                f"{where} has {image.shape[2]}x{image.shape[1]} pixels, but the first image has "
                f"{shape[2]}x{shape[1]}: give size or crop"
            )
        return image, int(self.labels[index])

    def _fitted(self, data: bytes, where: str) -> Tensor:
        return to_tensor(fit(decode_image(data, where), self.size, self.crop, where))


def fit(image: Image.Image, size: int | None, crop: int | None, where: str) -> Image.Image:
    """The centre square of `crop` pixels (default: the largest), resized to `size` pixels.

    With neither, the image as it is. Raises DataError if it is too small for the crop.
    """
    if size is None and crop is None:
        return image
    width, height = image.size
    if crop is not None and crop > min(width, height):
        raise DataError(
            f"{where} is of {width}x{height} pixels, too small for a crop of {crop}x{crop}"
        )
    image = centre_crop(image, crop)
    return image if size is None else resize(image, size)


def check_count(name: str, value: object) -> None:
    """Raise ValueError for an option that is neither left out nor an integer of at least 1."""
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
