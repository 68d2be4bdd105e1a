"""Data sets that are read from front to back: what a stream of shards is."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from datautils.fit import Fit, check_count
from datautils.indexed import check_split
from runtime.errors import DataError


class Record(NamedTuple):
    """A picture as it lies in a shard, not yet decoded."""

    data: bytes
    where: str  # for messages
    label: int  # -1 for none


class ImageStream(ABC):
    """Images in numbered shards, each of which can only be read from its beginning.

    Training reads `records` and decodes those it needs. The held-out images, the first `heldout`
    records of their own source, are kept encoded in memory and have an index as those of any data
    set. `size` and `crop` are explained at `Fit`. Items are (uint8 image [3, h, w], label or -1).
    """

    path: str
    shards: int
    num_classes: int

    def __init__(self, split: str, heldout: int | None, size: int | None, crop: int | None):
        check_split(split)
        check_count("heldout", heldout)
        if split == "heldout" and heldout is None:
            raise ValueError("heldout=N must say how many images of a stream are kept in memory")
        self.split = split
        self._count = heldout
        self._fit = Fit(size, crop)
        self._heldout: list[Record] | None = None

    @abstractmethod
    def records(self, shard: int, start: int = 0) -> Iterator[Record]:
        """The records of a shard from number `start` on; those before it are not decoded.

        Raises DataError where the shard is damaged or cannot be read.
        """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image; without size and crop, of the first."""
        return self._fit.shape_by(self._first)

    @property
    def description(self) -> dict[str, Any]:
        """Where the images come from and what was done to them, for a record in JSON."""
        return {
            "path": self.path,
            "split": self.split,
            "heldout": self._count,
            "shards": self.shards,
            "size": self._fit.size,
            "crop": self._fit.crop,
            "num_classes": self.num_classes,
        }

    def decode(self, record: Record) -> tuple[Tensor, int]:
        """The image of a record as uint8 `[3, h, w]`, and its label. Raises DataError."""
        _ = self.image_shape  # known from here on
        return self._fit(record.data, record.where), self._label(record)

    def __len__(self) -> int:
        return len(self._indexed())

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.decode(self._indexed()[index])

    def _label(self, record: Record) -> int:
        if not self.num_classes:
            return -1
        if not 0 <= record.label < self.num_classes:
            raise DataError(
                f"{record.where} has the label {record.label}, but there are {self.num_classes} "
                "classes, from 0"
                if record.label >= 0
                else f"{record.where} has no label, a whole number from 0"
            )
        return record.label

    def _first(self) -> tuple[bytes, str]:
        for record in self._all():
            return record.data, record.where
        raise DataError(f"{self.path} holds no image")

    def _all(self) -> Iterator[Record]:
        return itertools.chain.from_iterable(self.records(shard) for shard in range(self.shards))

    def _indexed(self) -> list[Record]:
        """The held-out records, read when they are first asked for."""
        if self.split != "heldout":
            raise DataError(
                f"{self.path} is a stream, which has neither a length nor an index: only its split "
                '"heldout" is kept in memory'
            )
        if self._heldout is None:
            self._heldout = list(itertools.islice(self._all(), self._count))
            if not self._heldout:
                raise DataError(f"{self.path} holds no image")
        return self._heldout
