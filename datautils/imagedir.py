"""Images in a folder or a zip file, whole or cropped and resized, with their labels."""

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datautils.archive import Archive, open_archive
from datautils.indexed import IndexedImages, check_count
from datautils.labels import Labels, check_range, read_labels, same_classes
from runtime.errors import DataError


class ImageDir(IndexedImages):
    """The images of a folder or a zip file, in the order of their names.

    split: "train", "heldout", or "all" images of `path`. `heldout=N` holds the last N out of
    training, `heldout_path` is another path that holds them; with neither every image is for
    training. `size` and `crop` are explained at `IndexedImages`, `labels` at `read_labels`;
    `num_classes` is the largest label of `path` + 1 unless given, and 0 without labels.

    Raises ValueError for options that make no sense and DataError, which names the file, for faults
    of the data; of an image, when it is read.
    """

    prepared: ClassVar[bool] = False  # whether `datautils.prepare` makes the files of this class

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "all",
        *,
        heldout: int | None = None,
        heldout_path: str | os.PathLike[str] | None = None,
        size: int | None = None,
        crop: int | None = None,
        labels: str = "auto",
        num_classes: int | None = None,
    ):
        super().__init__(split, size, crop, heldout)
        check_count("num_classes", num_classes)
        if heldout is not None and heldout_path is not None:
            raise ValueError("give heldout=N or heldout_path=PATH, not both")
        self.path = Path(path)
        self.heldout_path = None if heldout_path is None else Path(heldout_path)
        self._archive, found, self.num_classes = self._open(labels, num_classes)
        self._label_mode, self.classes = found.mode, found.folders
        self._chosen = self._choose(self._archive, found)
        self.labels = found.values[self._chosen].astype(np.int32)

    @property
    def names(self) -> list[str]:
        """The images' names, in order."""
        return [self._archive.names[i] for i in self._chosen.tolist()]

    @property
    def description(self) -> dict[str, Any]:
        return super().description | {
            "path": str(self._archive.path),
            "heldout": self.heldout,
            "heldout_path": self.heldout_path and str(self.heldout_path),
            "labels": self._label_mode,
        }

    def picture(self, index: int) -> tuple[bytes, str]:
        return self._archive.picture(int(self._chosen[index]))

    def _open(self, mode: str, num_classes: int | None) -> tuple[Archive, Labels, int]:
        """The archive that holds this split, the labels of all of its images, and num_classes."""
        outside = self.heldout_path if self.split == "heldout" else None
        path = outside or self.path
        if self.prepared and not path.exists():
            raise DataError(
                f"{path} is not there: make it by `python -m datautils.prepare --source ORIGINALS "
                f"--dest {path} --size {self.size}`, or name another folder or zip file by "
                f"{'heldout_path' if outside else 'path'}=PATH"
            )
        archive = open_archive(path)
        found = read_labels(archive, mode)
        classes = num_classes or found.classes
        # Numbers in dataset.json mean the same in every archive, and may be all there is to know.
        if outside and mode != "none" and not (num_classes and found.mode == "json"):
            training = open_archive(self.path)
            train = read_labels(training, mode)
            same_classes(found, train, archive, training)
            classes = num_classes or train.classes
        if classes:
            check_range(found, classes, archive)
        return archive, found, classes

    def _choose(self, archive: Archive, labels: Labels) -> np.ndarray:
        """Indices of this split's images among the names of the archive that holds it."""
        if self.split == "heldout" and self.heldout is None and self.heldout_path is None:
            raise ValueError(
                "nothing says which images are held out: give heldout=N or heldout_path=PATH, "
                'or take the split "all"'
            )
        return np.array(self._part(len(archive.names), archive.path))
