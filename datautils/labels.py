"""Class labels of an archive's pictures: from dataset.json, or by subfolder."""

import json
import os
from typing import Any, NamedTuple

import numpy as np

from datautils.archive import LABELS, Archive, Names
from runtime.errors import DataError

MODES = ("auto", "json", "subfolders", "none")


class Labels(NamedTuple):
    """The label of each picture of an archive, and where it was read."""

    mode: str  # "json", "subfolders" or "none"
    values: np.ndarray  # int64 [pictures], -1 without labels
    folders: tuple[str, ...] = ()  # the classes' names, label by label

    @property
    def classes(self) -> int:
        """The largest label + 1; 0 without labels."""
        return int(self.values.max()) + 1


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
            return Labels("json", values)
        if mode == "json":
            raise DataError(f"{archive.path} holds no {LABELS} with labels: give labels=none")
    elif mode != "none":
        root, folders = _class_folders(archive.names)
        if mode == "subfolders" or (len(folders) > 1 and not all(map(str.isdigit, folders))):
            return Labels("subfolders", _from_folders(archive, root, folders), tuple(folders))
    return Labels("none", np.full(len(archive.names), -1, dtype=np.int64))


def check_range(labels: Labels, num_classes: int, archive: Archive) -> None:
    """Raise DataError if there are no labels, or if one is not in 0..num_classes - 1."""
    if labels.mode == "none":
        raise DataError(f"{archive.path} has no labels, but should have {num_classes} classes")
    for i in np.flatnonzero(labels.values >= num_classes)[:1]:
        raise DataError(
            f"{archive.where(archive.names[i])} has the label {labels.values[i]}, "
            f"but there are {num_classes} classes, from 0"
        )


def same_classes(labels: Labels, train: Labels, archive: Archive, training: Archive) -> None:
    """Raise DataError if held-out labels differ in meaning from those of the training set."""
    if labels.mode != train.mode:
        raise DataError(
            f"the labels of {training.path} are of the kind '{train.mode}', those of "
            f"{archive.path} '{labels.mode}': they must be alike"
        )
    for name in sorted(set(labels.folders) ^ set(train.folders))[:1]:
        one, other = (archive, training) if name in labels.folders else (training, archive)
        raise DataError(f"{one.path} has a class folder '{name}' that {other.path} has not")


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
    slash = os.path.commonprefix([names[0], names[len(names) - 1]]).rfind("/")  # noqa: RUF071
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
