"""FFHQ at 64 and 256 pixels, with the published split: files from number 60000 are held out."""

import os
import re
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from datautils.archive import Archive
from datautils.imagedir import ImageDir, Labels
from runtime.errors import DataError

FIRST_HELDOUT = 60000
_INSTEAD = "give heldout_path=PATH to hold out the images of another folder or zip file instead"


class FFHQ64(ImageDir):
    """FFHQ in a folder or a zip file, by default data/ffhq64.zip (data/ffhq256.zip for FFHQ256).

    The number of a file is the last one in its stem. Numbers below 60000 are for training, the
    others held out, both in the order of the numbers. If `heldout_path` is given, its images are
    held out instead and all of `path` is for training, in the order of the names. Images of another
    size are resized as by ImageDir. Raises DataError for a file without a number and a split
    without an image.
    """

    side: ClassVar[int] = 64
    prepared = True

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        split: str = "train",
        *,
        heldout_path: str | os.PathLike[str] | None = None,
    ):
        path = f"data/ffhq{self.side}.zip" if path is None else path
        super().__init__(path, split, heldout_path=heldout_path, size=self.side, labels="none")

    def _choose(self, labels: Labels) -> np.ndarray:
        archive = labels.archive
        if self.heldout_path is not None:
            return np.arange(len(archive.names))
        numbers = np.array([_number(archive, name) for name in archive.names])
        order = np.argsort(numbers, kind="stable")
        heldout = numbers[order] >= FIRST_HELDOUT
        chosen = {"train": order[~heldout], "heldout": order[heldout], "all": order}[self.split]
        if not chosen.size:
            raise DataError(
                f"{archive.path} has no image of the {self.split} split, whose numbers are "
                f"{'from' if self.split == 'heldout' else 'below'} {FIRST_HELDOUT}: its numbers "
                f"are {numbers.min()} to {numbers.max()}; {_INSTEAD}"
            )
        return chosen


class FFHQ256(FFHQ64):
    __doc__ = FFHQ64.__doc__
    side = 256


def _number(archive: Archive, name: str) -> int:
    numbers = re.findall(r"[0-9]+", PurePosixPath(name).stem)
    if not numbers or len(numbers[-1]) > 18:
        raise DataError(
            f"{archive.where(name)} has no number in its name, so its split is unknown: {_INSTEAD}"
        )
    return int(numbers[-1])
