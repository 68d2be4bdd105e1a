"""Images in a folder or a zip file, whole or cropped and resized, with their labels."""

import json
import os
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from datautils.archive import LABELS, Archive, Names, open_archive
from datautils.indexed import IndexedImages, check_count
from runtime.errors import DataError

MODES = ("auto", "json", "subfolders", "none")


class Labels(NamedTuple):
    """The label of each picture of an archive, and where it was read."""

    archive: Archive
    mode: str  # "json", "subfolders" or "none"
    values: np.ndarray  # int64 [pictures], -1 without labels
    folders: tuple[str, ...] = ()  # the classes' names, label by label


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
        found, self.num_classes = self._open(labels, num_classes)
        self._archive, self._label_mode, self.classes = found.archive, found.mode, found.folders
        self._chosen = self._choose(found)
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

    def _open(self, mode: str, num_classes: int | None) -> tuple[Labels, int]:
        """The labels of all images of the archive that holds this split, and num_classes."""
        outside = self.heldout_path if self.split == "heldout" else None
        path = outside or self.path
        if self.prepared and not path.exists():
            raise DataError(
                f"{path} is not there: make it by `python -m datautils.prepare --source ORIGINALS "
                f"--dest {path} --size {self.size}`, or name another folder or zip file by "
                f"{'heldout_path' if outside else 'path'}=PATH"
            )
        found = train = read_labels(open_archive(path), mode)
        # Numbers in dataset.json mean the same in every archive, and may be all there is to know.
        if outside and mode != "none" and not (num_classes and found.mode == "json"):
            train = read_labels(open_archive(self.path), mode)
            check_alike(found, train)
        classes = num_classes or int(train.values.max()) + 1
        if classes:
            check_range(found, classes)
        return found, classes

    def _choose(self, labels: Labels) -> np.ndarray:
        """Indices of this split's images among the names of the archive that holds it."""
        if self.split == "heldout" and self.heldout is None and self.heldout_path is None:
            raise ValueError(
                "nothing says which images are held out: give heldout=N or heldout_path=PATH, "
                'or take the split "all"'
            )
        return np.array(self._part(len(labels.values), labels.archive.path))


def read_labels(archive: Archive, mode: str = "auto") -> Labels:
    """Labels of an archive's pictures, in the order of its names.

    "json" follows EDM: dataset.json holds {"labels": [[name, label], ...]}, or {name: label}, or
    null for no labels; the names are relative to its folder. "subfolders" numbers the top-level
    folders in the order of their names, or, where one folder holds everything, those below it.
    "auto" is "json" if there is a dataset.json, "subfolders" if there are at least two that
    are not all mere numbers, which split a large set into parts; else "none".
    Raises ValueError for an unknown mode, DataError for labels that are missing or wrong.
    """
    if mode not in MODES:
        raise ValueError(f"labels must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "json" or (mode == "auto" and archive.labels):
        values = _from_json(archive)
        if values is not None:
            return Labels(archive, "json", values)
        if mode == "json":
            raise DataError(f"{archive.path} holds no {LABELS} with labels: give labels=none")
    elif mode != "none":
        root, folders = _class_folders(archive.names)
        if mode == "subfolders" or (len(folders) > 1 and not all(map(str.isdigit, folders))):
            values = _from_folders(archive, root, folders)
            return Labels(archive, "subfolders", values, tuple(folders))
    return Labels(archive, "none", np.full(len(archive.names), -1, dtype=np.int64))


def check_range(labels: Labels, num_classes: int) -> None:
    """Raise DataError if there are no labels, or if one is not in 0..num_classes - 1."""
    archive = labels.archive
    if labels.mode == "none":
        raise DataError(f"{archive.path} has no labels, but should have {num_classes} classes")
    for i in np.flatnonzero(labels.values >= num_classes)[:1]:
        raise DataError(
            f"{archive.where(archive.names[i])} has the label {labels.values[i]}, "
            f"but there are {num_classes} classes, from 0"
        )


def check_alike(heldout: Labels, train: Labels) -> None:
    """Raise DataError if held-out labels differ in meaning from those of the training set."""
    paths = heldout.archive.path, train.archive.path
    if heldout.mode != train.mode:
        raise DataError(
            f"the labels of {paths[1]} are of the kind '{train.mode}', those of {paths[0]} "
            f"'{heldout.mode}': they must be alike"
        )
    for name in sorted(set(heldout.folders) ^ set(train.folders))[:1]:
        one, other = paths if name in heldout.folders else paths[::-1]
        raise DataError(f"{one} has a class folder '{name}' that {other} has not")


def _from_json(archive: Archive) -> np.ndarray | None:
    """The labels of dataset.json, None if the file is missing or has none."""
    if archive.labels is None:
        return None
    where, folder = archive.where(archive.labels), archive.labels.removesuffix(LABELS)
    numbers = {name: i for i, name in enumerate(archive.names)}
    values = np.full(len(numbers), -1, dtype=np.int64)
    pairs = _pairs(archive.read_labels(), where)
    for name, label in pairs:
        i = numbers.get(folder + name)
        if i is None:
            raise DataError(f"{where} has a label for {name}, which is not there")
        if values[i] >= 0:
            raise DataError(f"{where} has two labels for {name}")
        if type(label) is not int or not 0 <= label < 2**31:
            raise DataError(
                f"the label of {name} in {where} is {label!r:.80}, not an integer from 0"
            )
        values[i] = label
    if not pairs:
        return None
    _check_all(archive, values, f"{where} has labels for others")
    return values


def _pairs(data: bytes, where: str) -> list[tuple[str, Any]]:
    """The (name, label) pairs of dataset.json, empty if it has none. Raises DataError."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no valid JSON: {error}") from None
    if not isinstance(content, dict) or "labels" not in content:
        raise DataError(f'{where} must hold {{"labels": [[name, label], ...]}}')
    labels = content["labels"]
    pairs = list(labels.items()) if isinstance(labels, dict) else labels or []
    if not isinstance(pairs, list):
        raise DataError(f'"labels" in {where} must be a list of [name, label], or null')
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise DataError(f'"labels" in {where} holds {str(pair)[:80]}, not [name, label]')
    return pairs


def _from_folders(archive: Archive, root: str, folders: list[str]) -> np.ndarray:
    number = {folder: i for i, folder in enumerate(folders)}
    tops = (name[len(root) :].partition("/") for name in archive.names)
    values = np.array([number[top] if slash else -1 for top, slash, _ in tops], dtype=np.int64)
    _check_all(archive, values, "it lies in no subfolder; give labels=none if these are no classes")
    return values


def _class_folders(names: Names) -> tuple[str, list[str]]:
    """(root, folders): what all of the sorted names begin with, "" or ending in "/", and the names
    of the folders next to it. With fewer than two of these the root's last folder is the only one.
    """
    slash = os.path.commonprefix([names[0], names[-1]]).rfind("/")  # noqa: RUF071
    root = names[0][: slash + 1]
    below = (name[len(root) :].partition("/") for name in names)
    folders = sorted({top for top, found, _ in below if found})
    if root and len(folders) < 2:
        parent, _, last = root[:-1].rpartition("/")
        return (f"{parent}/" if parent else ""), [last]
    return root, folders


def _check_all(archive: Archive, values: np.ndarray, reason: str) -> None:
    for i in np.flatnonzero(values < 0)[:1]:
        raise DataError(f"{archive.where(archive.names[i])} has no label: {reason}")
