"""Data sets with an index whose pictures are decoded and fitted to one shape when they are read."""

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datautils.fit import Fit

SPLITS = ("train", "heldout", "all")


class IndexedImages(Dataset[tuple[Tensor, int]], ABC):
    """Items are (uint8 image [3, h, w], label or -1). A subclass sets the three attributes."""

    num_classes: int
    _fit: Fit
    _labels: np.ndarray  # int32 [images], -1 for none

    @abstractmethod
    def _read(self, index: int) -> tuple[bytes, str]:
        """The bytes of image `index`, and how a message names it. Raises DataError."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image; without size and crop, of the first."""
        return self._fit.shape_by(lambda: self._read(0))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image `index` and its label. Raises IndexError, and DataError for a broken image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        _ = self.image_shape  # known from here on
        return self._fit(*self._read(index)), int(self._labels[index])


def check_split(split: str) -> None:
    """Raise ValueError, with the known ones, for another split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
